//! A way to `ClickHouse` that loses answers, or holds inserts up.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the way does with what comes along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Passes everything on.
    Open,
    /// Lets every third answer be lost, with its connection: what was asked for has been done.
    LosesAnswers,
    /// Keeps inserts back, also when their sender is gone.
    HoldsInserts,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    answers: usize,
    held: usize,
    /// The first line of the answer to each insert that was held.
    landed: Vec<String>,
}

/// A listener on a port of its own; its threads end with the test process.
#[derive(Debug)]
pub(crate) struct Proxy {
    url: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// A way to the server at `url`.
    pub(crate) fn to(url: &str) -> Self {
        let server = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            manner: Manner::Open,
            answers: 0,
            held: 0,
            landed: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else {
                    continue;
                };
                let (way, back) = (Arc::clone(&shared), Arc::clone(&shared));
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || requests(from, to, &way));
                std::thread::spawn(move || answers(server, client, &back));
            }
        });
        Self { url: own, state }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn set(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// Inserts that are being held up.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().unwrap().held
    }

    /// The first line of the answer to each insert that was held up and let go.
    pub(crate) fn landed(&self) -> Vec<String> {
        self.state.lock().unwrap().landed.clone()
    }
}

fn requests(mut from: TcpStream, mut to: TcpStream, state: &Mutex<State>) {
    from.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut kept: Vec<u8> = Vec::new();
    let mut open = true;
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
        let mut now = state.lock().unwrap();
        let holds = now.manner == Manner::HoldsInserts;
        let is_insert = some.windows(6).any(|word| word == b"INSERT");
        if holds && (is_insert || !kept.is_empty()) {
            now.held += usize::from(kept.is_empty());
            kept.extend_from_slice(some);
        } else if !kept.is_empty() {
            drop(now);
            kept.extend_from_slice(some);
            if to.write_all(&std::mem::take(&mut kept)).is_err() {
                return;
            }
        } else {
            drop(now);
            if to.write_all(some).is_err() {
                return;
            }
        }
        if !open && kept.is_empty() {
            // Its answers are read to their end by the other thread.
            drop(to.shutdown(Shutdown::Write));
            return;
        }
        if !open {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn answers(mut from: TcpStream, mut to: TcpStream, state: &Mutex<State>) {
    let mut chunk = vec![0; 1 << 16];
    let mut receives = true;
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let mut now = state.lock().unwrap();
        now.answers += 1;
        if now.manner == Manner::LosesAnswers && now.answers.is_multiple_of(3) {
            break;
        }
        if now.held > now.landed.len() && now.manner != Manner::HoldsInserts {
            let line = String::from_utf8_lossy(&chunk[..n])
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned();
            now.landed.push(line);
        }
        drop(now);
        // Whoever asked may be gone; the server is heard to the end all the same.
        receives = receives && to.write_all(&chunk[..n]).is_ok();
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
