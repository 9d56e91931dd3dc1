//! What a claim costs: memory and CPU of Redis an event, in each layout and in the textbook's `SETNX` and `EXPIRE`, side by
//! side, each on a Redis of its own; and whether every answer is right, against an exact oracle.
//!
//! Two phases. *First window*: `--claims` ids, none of which expires; measured at 400,000 and at the end. *Turned over*:
//! claims come as fast as Redis takes them until the window of `--window` seconds has passed more than twice; memory
//! is divided by the claims of the last window. One in ten is a resend from the last window, and must be a duplicate. CPU
//! is the server's own count, so other load about makes it dearer for all: compare within one run.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that shows its result, and stops at whatever it did not expect"
)]

use std::collections::VecDeque;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sluice::pipeline::claim::{Claim, Claims, Wanted};
use sluice::redis::keys::Keys;
use sluice::redis::{Redis, Settings};
use tempfile::TempDir;

/// Claims of one block.
const BLOCK: usize = 65_536;
/// Where memory is measured first.
const FEW: u64 = 400_000;
const ONE_DAY: u64 = 86_400;
/// How often the window passes, and a bit.
const TURNS: f64 = 2.2;

struct Arguments {
    claims: u64,
    window: u64,
}

fn arguments() -> Arguments {
    let mut parsed = Arguments {
        claims: 10_000_000,
        window: 60,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().and_then(|value| value.parse().ok());
        match name.as_str() {
            "--claims" => parsed.claims = value().unwrap_or_else(|| usage(&name)),
            "--window" => parsed.window = value().unwrap_or_else(|| usage(&name)),
            // What cargo itself passes.
            "--bench" => {}
            other => usage(other),
        }
    }
    parsed
}

fn usage(problem: &str) -> ! {
    eprintln!("{problem}?\nusage: make bench ARGS='--bench claims -- [--claims N] [--window SECONDS]'");
    std::process::exit(2)
}

/// A Redis of its own, on a socket in a folder of its own; gone when dropped.
struct Server {
    process: Child,
    redis: Redis,
    _folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let socket = folder.path().join("socket");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed by `make bench`");
        let redis = {
            let url = format!("redis+unix://{}", socket.display());
            let settings = Settings::standalone(&url).expect("an address");
            Redis::open(&settings, 1).expect("a client")
        };
        let start = Instant::now();
        while redis.time_ms().await.is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "Redis does not come up"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self {
            process,
            redis,
            _folder: folder,
        }
    }

    /// Bytes used and CPU seconds.
    async fn cost(&self) -> (f64, f64) {
        let mut info = ::redis::cmd("INFO");
        info.arg("everything");
        let text: String = self.redis.command(&info).await.expect("INFO");
        let field = |name: &str| -> f64 {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse().ok())
                .expect("a number")
        };
        (
            field("used_memory"),
            field("used_cpu_user") + field("used_cpu_sys"),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("it ends");
        self.process.wait().expect("it has ended");
    }
}

/// A way to claim.
enum Way {
    Textbook { window: u64 },
    Layout(Claims),
}

impl Way {
    fn all(window: u64) -> [(&'static str, Self); 3] {
        let layout = |secret: Option<&[u8; 16]>| Self::Layout(Claims::new(Keys::new(""), window, secret));
        [
            ("SETNX + EXPIRE", Self::Textbook { window }),
            ("keys", layout(None)),
            ("packed", layout(Some(&[9; 16]))),
        ]
    }

    /// Whose each is.
    async fn claim(&self, redis: &Redis, tokens: &[String], wanted: &[Wanted]) -> Vec<Claim> {
        let window = match self {
            Self::Layout(claims) => return claims.claim(redis, tokens, wanted).await.expect("claims"),
            Self::Textbook { window } => *window,
        };
        let keys = Keys::new("");
        let mut claims = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(4_096) {
            let mut pipe = ::redis::Pipeline::with_capacity(2 * wanted.len());
            for want in wanted {
                let id = uuid::Uuid::from_u128(want.id);
                let key = format!("{}{id}}}", keys.claims_of(&tokens[want.token]));
                pipe.cmd("SETNX").arg(&key).arg(1);
                pipe.cmd("EXPIRE").arg(&key).arg(window).arg("NX");
            }
            let answers = redis.pipeline(&pipe).await.expect("claims");
            claims.extend(answers.iter().step_by(2).map(|answer| {
                if *answer == ::redis::Value::Int(1) {
                    Claim::Ours
                } else {
                    Claim::Others
                }
            }));
        }
        claims
    }
}

/// The id of the n-th event: any, but the same each time.
fn id(n: u64) -> u128 {
    let mut random = StdRng::seed_from_u64(n);
    random.random()
}

fn want(n: u64, coordinate: u64) -> Wanted {
    Wanted {
        token: 0,
        id: id(n),
        // In one of eight partitions, at an offset.
        coordinate: (((coordinate % 8) << 40) | (coordinate / 8)) as i64,
        takes_over: None,
    }
}

struct Load<'a> {
    server: &'a Server,
    way: &'a Way,
    tokens: Vec<String>,
    random: StdRng,
    /// Fresh ids so far.
    ids: u64,
    /// Claims so far, resends among them.
    claims: u64,
    wrong: u64,
}

impl<'a> Load<'a> {
    fn new(server: &'a Server, way: &'a Way) -> Self {
        Self {
            server,
            way,
            tokens: vec!["phc_0123456789abcdef0123456789abcdef".to_owned()],
            random: StdRng::seed_from_u64(1),
            ids: 0,
            claims: 0,
            wrong: 0,
        }
    }

    /// A block: a tenth of it resends of ids from `from` on, of which none has expired.
    async fn block(&mut self, size: usize, from: u64) {
        let (mut wanted, mut expected) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for _ in 0..size {
            self.claims += 1;
            if self.ids > from && self.random.random_range(0..10) == 0 {
                wanted.push(want(self.random.random_range(from..self.ids), self.claims));
                expected.push(Claim::Others);
            } else {
                wanted.push(want(self.ids, self.claims));
                expected.push(Claim::Ours);
                self.ids += 1;
            }
        }
        let claims = self.way.claim(&self.server.redis, &self.tokens, &wanted).await;
        self.wrong += claims
            .iter()
            .zip(&expected)
            .filter(|(found, expected)| found != expected)
            .count() as u64;
    }
}

/// Bytes an event and CPU an event in µs at [`FEW`] and at `claims` ids, and wrong answers.
async fn first_window(way: &Way, claims: u64, progress: &ProgressBar) -> [String; 5] {
    let server = Server::start().await;
    let mut load = Load::new(&server, way);
    let (memory, cpu) = server.cost().await;
    let mut told = Vec::new();
    for until in [FEW.min(claims), claims] {
        while load.ids < until {
            load.block(BLOCK.min((until - load.ids) as usize), 0).await;
            progress.set_position(load.ids);
        }
        let (memory_now, cpu_now) = server.cost().await;
        told.push(format!("{:.1}", (memory_now - memory) / load.ids as f64));
        told.push(format!("{:.2}", (cpu_now - cpu) / load.claims as f64 * 1e6));
    }
    told.push(load.wrong.to_string());
    told.try_into().expect("five")
}

/// Claims of the last window, bytes and CPU of each, and wrong answers, once the window has turned over.
async fn turned_over(way: &Way, window: u64, progress: &ProgressBar) -> [String; 4] {
    let server = Server::start().await;
    let mut load = Load::new(&server, way);
    let (memory, _) = server.cost().await;
    let start = Instant::now();
    // When each block began, and its first id.
    let mut blocks: VecDeque<(Instant, u64)> = VecDeque::new();
    let span = Duration::from_secs(window);
    let mut before: Option<(f64, u64)> = None;
    while start.elapsed() < span.mul_f64(TURNS) {
        blocks.push_back((Instant::now(), load.ids));
        // A margin for this block's own time.
        let safe = span.mul_f64(0.9);
        while blocks.len() > 1 && blocks[1].0.elapsed() > span {
            blocks.pop_front();
        }
        let from = blocks
            .iter()
            .find(|(at, _)| at.elapsed() < safe)
            .map_or(load.ids, |(_, id)| *id);
        load.block(BLOCK / 4, from).await;
        if before.is_none() && start.elapsed() > span.mul_f64(1.2) {
            before = Some((server.cost().await.1, load.claims));
        }
        progress.set_position(start.elapsed().as_secs());
    }
    let (memory_now, cpu_now) = server.cost().await;
    let live = load.ids
        - blocks
            .iter()
            .find(|(at, _)| at.elapsed() < span)
            .map_or(0, |(_, id)| *id);
    let (cpu, claims) = before.expect("more than a window has passed");
    [
        live.to_string(),
        format!("{:.1}", (memory_now - memory) / live as f64),
        format!("{:.2}", (cpu_now - cpu) / (load.claims - claims) as f64 * 1e6),
        load.wrong.to_string(),
    ]
}

fn right_aligned(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[tokio::main]
async fn main() {
    let Arguments { claims, window } = arguments();
    let many = format!("B at {claims}");
    let mut first = right_aligned(&["first window", "B at 400000", "µs", &many, "µs", "wrong"]);
    for (name, way) in Way::all(ONE_DAY) {
        let progress = ProgressBar::new(claims).with_message(name);
        let told = first_window(&way, claims, &progress).await;
        progress.finish_and_clear();
        first.add_row(std::iter::once(name.to_owned()).chain(told));
    }
    println!("{first}");
    let mut turned = right_aligned(&["turned over", "in the window", "B", "µs", "wrong"]);
    for (name, way) in Way::all(window) {
        let progress = ProgressBar::new((window as f64 * TURNS) as u64).with_message(name);
        let told = turned_over(&way, window, &progress).await;
        progress.finish_and_clear();
        turned.add_row(std::iter::once(name.to_owned()).chain(told));
    }
    println!("{turned}");
}
