//! A way to a service that cuts connections, loses answers, holds things up, or is slow.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a pump that has nothing to do looks whether the manner has changed.
const LOOK: Duration = Duration::from_millis(50);
/// A way that trickles passes so many bytes on at a time.
const TRICKLE: usize = 4096;
const BETWEEN_TRICKLES: Duration = Duration::from_millis(8);

/// What the way does with what comes along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Passes everything on.
    Open,
    /// Lets every third answer be lost, with its connection: what was asked for has been done.
    LosesAnswers,
    /// Keeps inserts back, also when their sender is gone.
    HoldsInserts,
    /// Keeps answers back.
    HoldsAnswers,
    /// Passes each piece on so much later.
    Delays(Duration),
    /// Passes some hundred kilobytes a second.
    Trickles,
}

/// Where the connection of a request is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// After so many bytes of the request: 0 is before it.
    Request(usize),
    /// After the server has done what was asked for, before the answer.
    Answer,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    answers: usize,
    held: usize,
    /// The first line of the answer to each insert that was held (empty if its connection ended without one).
    landed: Vec<String>,
    /// Inserts that were passed on and not answered.
    under_way: usize,
    /// Connections that are still to be cut: how, whether only those of inserts, and how many.
    cuts: Option<(Cut, bool, usize)>,
    /// Put in front of the parameters of each request's URL.
    profile: String,
}

/// The insert of a connection.
#[derive(Clone, Copy, Debug, Default)]
enum Insert {
    #[default]
    None,
    Held,
    Passed,
    HeldThenPassed,
}

/// What both directions of a connection know of it.
#[derive(Debug, Default)]
struct Connection {
    insert: Insert,
    cut_at_answer: bool,
    /// The server has closed it.
    over: bool,
}

#[derive(Debug, Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    connection: Arc<Mutex<Connection>>,
}

/// A listener on a port of its own; its threads end with it, or with their connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    url: String,
    address: String,
    state: Arc<Mutex<State>>,
    closed: Arc<Mutex<bool>>,
}

impl Proxy {
    /// A way to the server at `url`.
    pub(crate) fn to(url: &str) -> Self {
        let (scheme, server) = url.split_once("://").unwrap();
        let server = server.trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            manner: Manner::Open,
            answers: 0,
            held: 0,
            landed: Vec::new(),
            under_way: 0,
            cuts: None,
            profile: String::new(),
        }));
        let proxy = Self {
            url: format!("{scheme}://{address}"),
            address,
            state: Arc::clone(&state),
            closed: Arc::default(),
        };
        let closed = Arc::clone(&proxy.closed);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if *closed.lock().unwrap() {
                    return;
                }
                let Ok(server) = TcpStream::connect(&server) else {
                    continue;
                };
                let shared = Shared {
                    state: Arc::clone(&state),
                    connection: Arc::default(),
                };
                let (way, back) = (shared.clone(), shared);
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                std::thread::spawn(move || requests(from, to, &way));
                std::thread::spawn(move || answers(server, client, &back));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn set(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// Gives every request these settings (`a=1&b=2`) before its own, which come after them and so override them: what
    /// the user's profile on the server would do.
    pub(crate) fn set_profile(&self, settings: &str) {
        self.state.lock().unwrap().profile = format!("{settings}&");
    }

    /// Cuts the connections of the next `times` requests (of inserts, if `only_inserts`).
    pub(crate) fn cut(&self, cut: Cut, only_inserts: bool, times: usize) {
        self.state.lock().unwrap().cuts = Some((cut, only_inserts, times));
    }

    /// Connections that are still to be cut.
    pub(crate) fn cuts_left(&self) -> usize {
        self.state.lock().unwrap().cuts.map_or(0, |(_, _, times)| times)
    }

    /// Inserts that are, or were, held up.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().unwrap().held
    }

    /// Inserts that were passed on and have no answer yet.
    pub(crate) fn under_way(&self) -> usize {
        self.state.lock().unwrap().under_way
    }

    /// The first line of the answer to each insert that was held up and let go.
    pub(crate) fn landed(&self) -> Vec<String> {
        self.state.lock().unwrap().landed.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Manner::Open);
        *self.closed.lock().unwrap() = true;
        // Wakes the listener; if it is gone, that is as good.
        drop(TcpStream::connect(&self.address));
    }
}

/// What a piece of a request is to become.
enum Piece {
    Pass,
    Keep,
    /// Passes so many bytes, then the connection ends.
    Cut(usize),
}

impl Shared {
    fn judge(&self, some: &[u8], kept: &[u8]) -> Piece {
        let mut now = self.state.lock().unwrap();
        let mut connection = self.connection.lock().unwrap();
        let is_insert = some.windows(6).any(|word| word == b"INSERT");
        // What is cut is not held, so that an insert may lose its answer and its repeat be kept back.
        let cut = now
            .cuts
            .filter(|(_, only_inserts, times)| *times > 0 && (is_insert || !only_inserts))
            .filter(|_| kept.is_empty() && !some.is_empty());
        if cut.is_none() && now.manner == Manner::HoldsInserts && (is_insert || !kept.is_empty()) {
            if kept.is_empty() {
                now.held += 1;
                connection.insert = Insert::Held;
            }
            return Piece::Keep;
        }
        if (is_insert || !kept.is_empty()) && !connection.over {
            let passed = match connection.insert {
                Insert::None => Insert::Passed,
                Insert::Held => Insert::HeldThenPassed,
                already => already,
            };
            let already = matches!(connection.insert, Insert::Passed | Insert::HeldThenPassed);
            now.under_way += usize::from(!already);
            connection.insert = passed;
        }
        if let Some((cut, only_inserts, times)) = cut {
            now.cuts = Some((cut, only_inserts, times - 1));
            match cut {
                Cut::Request(bytes) => return Piece::Cut(bytes),
                Cut::Answer => connection.cut_at_answer = true,
            }
        }
        Piece::Pass
    }

    /// A piece that a request begins with, with the profile in its URL.
    fn with_profile(&self, some: &[u8]) -> Option<Vec<u8>> {
        const BEGINS: &[u8] = b"POST /?";
        let profile = self.state.lock().unwrap().profile.clone();
        let rest = some.strip_prefix(BEGINS).filter(|_| !profile.is_empty())?;
        Some([BEGINS, profile.as_bytes(), rest].concat())
    }

    fn manner(&self) -> Manner {
        self.state.lock().unwrap().manner
    }

    /// Passes bytes on in the manner of now. Answers whether they were taken.
    fn pass(&self, to: &mut TcpStream, bytes: &[u8]) -> bool {
        match self.manner() {
            Manner::Delays(later) => {
                std::thread::sleep(later);
                to.write_all(bytes).is_ok()
            }
            Manner::Trickles => bytes.chunks(TRICKLE).all(|some| {
                std::thread::sleep(BETWEEN_TRICKLES);
                to.write_all(some).is_ok()
            }),
            _ => to.write_all(bytes).is_ok(),
        }
    }

    /// The insert of this connection, if there is one, has its answer, or will have none.
    fn insert_ended(&self, answer: &str) {
        let mut now = self.state.lock().unwrap();
        let mut connection = self.connection.lock().unwrap();
        let insert = std::mem::take(&mut connection.insert);
        if matches!(insert, Insert::Passed | Insert::HeldThenPassed) {
            now.under_way -= 1;
        }
        if matches!(insert, Insert::Held | Insert::HeldThenPassed) {
            now.landed.push(answer.to_owned());
        }
    }
}

fn requests(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let cut = |from: &TcpStream, to: &TcpStream| {
        drop(from.shutdown(Shutdown::Both));
        drop(to.shutdown(Shutdown::Both));
    };
    if from.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    let mut kept: Vec<u8> = Vec::new();
    let mut open = true;
    // Bytes after which this connection ends.
    let mut left: Option<usize> = None;
    let mut chunk = vec![0; 1 << 16];
    loop {
        let read = if open { from.read(&mut chunk) } else { Ok(0) };
        let some = match read {
            Ok(0) => {
                open = false;
                &[][..]
            }
            Ok(n) => &chunk[..n],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => &[],
            Err(_) => {
                open = false;
                &[]
            }
        };
        let changed = shared.with_profile(some);
        let some = changed.as_deref().unwrap_or(some);
        let piece = match left {
            None => shared.judge(some, &kept),
            Some(_) => Piece::Pass,
        };
        match piece {
            Piece::Keep => {
                kept.extend_from_slice(some);
                if !open {
                    std::thread::sleep(LOOK / 5);
                }
                continue;
            }
            Piece::Cut(bytes) => left = Some(bytes),
            Piece::Pass => {}
        }
        kept.extend_from_slice(some);
        let pending = std::mem::take(&mut kept);
        let most = left.unwrap_or(usize::MAX).min(pending.len());
        if !shared.pass(&mut to, &pending[..most]) {
            return cut(&from, &to);
        }
        if let Some(left) = &mut left {
            *left -= most;
            // The whole request may be shorter: then it is cut before its answer.
            if *left == 0 {
                return cut(&from, &to);
            }
            shared.connection.lock().unwrap().cut_at_answer = true;
        }
        if !open {
            // Its answers are read to their end by the other thread.
            drop(to.shutdown(Shutdown::Write));
            return;
        }
    }
}

fn answers(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut chunk = vec![0; 1 << 16];
    let mut receives = true;
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let line = String::from_utf8_lossy(&chunk[..n])
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        shared.insert_ended(&line);
        while shared.manner() == Manner::HoldsAnswers {
            std::thread::sleep(LOOK / 5);
        }
        let lost = {
            let mut now = shared.state.lock().unwrap();
            now.answers += 1;
            now.manner == Manner::LosesAnswers && now.answers.is_multiple_of(3)
        };
        if lost || shared.connection.lock().unwrap().cut_at_answer {
            break;
        }
        // Whoever asked may be gone; the server is heard to the end all the same.
        receives = receives && shared.pass(&mut to, &chunk[..n]);
    }
    shared.connection.lock().unwrap().over = true;
    shared.insert_ended("");
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
