//! What Redis does, as it tells it: every command with its own time, those of scripts too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Scene;

/// A listener to `MONITOR`. The time of a line is that of the server, taken when the command ran.
pub(crate) struct Monitor {
    stream: TcpStream,
    reader: JoinHandle<Vec<String>>,
    prefix: String,
}

impl Monitor {
    /// From here on every command is heard that counts permits.
    pub(crate) fn start(scene: &Scene) -> Self {
        Self::of(scene, "\"HINCRBY\"".to_owned())
    }

    /// From here on every command is heard that has `word` in it: all of them would be as long as the load.
    pub(crate) fn of(scene: &Scene, word: String) -> Self {
        let address = scene
            .redis_url()
            .strip_prefix("redis://")
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut answer = String::new();
        lines.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), "+OK");
        let reader = std::thread::spawn(move || {
            lines
                .split(b'\n')
                .map_while(Result::ok)
                .map(|line| String::from_utf8_lossy(&line).into_owned())
                .filter(|line| line.contains(&word))
                .collect()
        });
        Self {
            stream,
            reader,
            prefix: scene.prefix.clone(),
        }
    }

    /// What was heard. Ends the listening.
    pub(crate) fn heard(self) -> Vec<String> {
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.reader.join().unwrap()
    }

    /// When how many permits were counted on `key`, in order of time. Ends the listening.
    pub(crate) fn permits(self, key: &str) -> Vec<(Duration, usize)> {
        let key = format!("\"{}{key}\"", self.prefix);
        let lines = self.heard();
        let of_key = lines.iter().filter(|line| line.contains(&key));
        of_key
            .map(|line| {
                // +1700000000.123456 [0 lua] "HINCRBY" "key" "width:bucket" "12"
                let time = line.trim_start_matches('+').split(' ').next().unwrap();
                let count = line.trim_end().trim_end_matches('"').rsplit('"').next().unwrap();
                (
                    Duration::from_secs_f64(time.parse().unwrap()),
                    count.parse().unwrap(),
                )
            })
            .collect()
    }
}
