//! Redis with TLS, certificates of clients, and a user that may do what Sluice needs and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::api_users::reads_back;
use crate::harness::Scene;
use crate::harness::redis_server::Server;
use crate::harness::redises::Redises;
use crate::main_path::settles;

const PASSWORD: &str = "acl-s3cret";
const WRONG: &str = "wr0ng-s3cret";
/// The rule of docs/redis-connections.md.
const DOCS: &str = include_str!("../../docs/redis-connections.md");

/// An authority and what it signed, as PEM files.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let own = Self(tempfile::tempdir().unwrap());
        let new_key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ];
        own.openssl(
            &[
                &[
                    "req",
                    "-x509",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=authority",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                ][..],
                &new_key,
            ]
            .concat(),
        );
        std::fs::write(own.path("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        for name in ["server", "client"] {
            let (key, request, pem) = (
                format!("{name}.key"),
                format!("{name}.csr"),
                format!("{name}.pem"),
            );
            let subject = format!("/CN={name}");
            own.openssl(
                &[
                    &["req", "-subj", &subject, "-keyout", &key, "-out", &request][..],
                    &new_key,
                ]
                .concat(),
            );
            own.openssl(&[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                "names",
                "-out",
                &pem,
            ]);
        }
        own
    }

    fn openssl(&self, words: &[&str]) {
        let output = Command::new("openssl")
            .args(words)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// The permissions in the documentation, from `-@all` on.
fn documented_rule() -> Vec<String> {
    let line = DOCS
        .lines()
        .find(|line| line.starts_with("user sluice on "))
        .unwrap();
    let words = line.split_whitespace().skip_while(|word| *word != "-@all");
    words.map(str::to_owned).collect()
}

fn start(parent: &Path, certificates: &Certificates, prefix: &str) -> Server {
    let (password, keys) = (format!(">{PASSWORD}"), format!("~{prefix}*"));
    let files = ["server.pem", "server.key", "ca.pem"].map(|name| certificates.text(name));
    let rule = documented_rule();
    let mut words = vec![
        "--tls-port",
        "PORT",
        "--tls-cert-file",
        &files[0],
        "--tls-key-file",
        &files[1],
        "--tls-ca-cert-file",
        &files[2],
        "--tls-auth-clients",
        "yes",
        "--user",
        "default",
        "on",
        "nopass",
        "-@all",
        "+acl|log",
        "--user",
        "sluice",
        "on",
        &password,
        &keys,
        "resetchannels",
    ];
    words.extend(rule.iter().map(String::as_str));
    Server::start(parent, &words)
}

fn told(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    for secret in [PASSWORD, WRONG, "-----BEGIN"] {
        assert!(!text.contains(secret), "{secret} is told:\n{text}");
    }
    text
}

/// The load of the main path, as a user with the documented rule and what it adds for the mode; and what `check` tells.
fn restricted(name: &str, redises: Redises, more: &[&str], told_by_check: &[String]) {
    let mut scene = Scene::with_redis(name, 4, redises);
    let redises = scene.redises.as_ref().unwrap();
    let mut rule = vec![format!("~{}*", scene.prefix), "resetchannels".to_owned()];
    rule.extend(documented_rule());
    assert!(more.iter().all(|word| DOCS.contains(word)));
    rule.extend(more.iter().map(|word| (*word).to_owned()));
    redises.allow("sluice", PASSWORD, &rule);
    let url = redises
        .url()
        .replace("redis://", &format!("redis://sluice:{PASSWORD}@"));
    scene.set("redis.url", &url);
    let output = scene.sluice(&["check"]);
    let text = told(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in told_by_check {
        assert!(text.contains(part), "{part}: {text}");
    }
    settles(&scene);
    let refused = scene.redises.as_ref().unwrap().refused();
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn behind_sentinels_the_documented_rule_is_enough() {
    let redises = Redises::sentinel();
    let found = format!(
        "primary {}, named by 3 of 3 sentinels",
        redises.primaries()[0].address()
    );
    restricted("allowedsentinel", redises, &["+role"], &[found]);
}

#[test]
fn on_a_cluster_the_documented_rule_is_enough() {
    let found = ["cluster: 3 primaries", "serve 16384 of 16384 slots"].map(str::to_owned);
    let more = ["+cluster|slots", "+cluster|myid", "+asking"];
    restricted("allowedcluster", Redises::cluster(3, 0), &more, &found);
}

#[test]
fn tls_and_a_user_with_the_documented_rule_are_enough_and_nothing_secret_is_told() {
    let mut scene = Scene::new("secured", 1);
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let server = start(folder.path(), &certificates, &scene.prefix);
    let url = |password: &str| format!("rediss://sluice:{password}@{}", server.address());
    let url_key = "redis.url";
    scene.set(url_key, &url(PASSWORD));
    for (key, file) in [
        ("tls_ca_file", "ca.pem"),
        ("tls_cert_file", "client.pem"),
        ("tls_key_file", "client.key"),
    ] {
        scene.set(&format!("redis.{key}"), &certificates.text(file));
    }
    let check = |settings: &[(&str, &str)]| {
        let mut command = scene.command();
        for (key, value) in settings {
            command.env(format!("SLUICE_{}", key.replace('.', "__").to_uppercase()), value);
        }
        let output = command.arg("check").output().unwrap();
        (output.status.code(), told(&output))
    };
    crate::harness::wait::eventually("check finds all well", std::time::Duration::from_secs(30), || {
        let (code, text) = check(&[]);
        crate::harness::wait::seen(code == Some(0) && text.contains("all that a worker sends"), text)
    });

    let (code, text) = check(&[(url_key, &url(WRONG))]);
    assert!(
        code == Some(1) && text.contains("authentication failed"),
        "{text}"
    );
    let (code, text) = check(&[("redis.key_prefix", "another:")]);
    assert!(code == Some(1) && text.contains("no permissions"), "{text}");
    let (code, text) = check(&[("redis.tls_ca_file", "")]);
    assert!(
        code == Some(1) && text.contains("certificate verify failed"),
        "{text}"
    );
    let (code, text) = check(&[("redis.tls_cert_file", ""), ("redis.tls_key_file", "")]);
    assert!(code == Some(1) && text.contains("redis"), "{text}");
    let (code, text) = check(&[("redis.tls_ca_file", "/nowhere/ca.pem")]);
    assert!(
        code == Some(2) && text.contains("redis.tls_ca_file = \"/nowhere/ca.pem\""),
        "{text}"
    );
    let (code, text) = check(&[("redis.tls_key_file", &certificates.text("client.csr"))]);
    assert!(code == Some(2) && text.contains("redis.tls_key_file"), "{text}");
    let (code, text) = check(&[("redis.tls_key_file", &certificates.text("server.key"))]);
    assert!(code == Some(1) && text.contains("key values mismatch"), "{text}");

    reads_back(&scene);
    let log = Command::new("redis-cli")
        .args([
            "-p",
            &server.port.to_string(),
            "--tls",
            "--cacert",
            &certificates.text("ca.pem"),
            "--cert",
        ])
        .args([
            &certificates.text("client.pem"),
            "--key",
            &certificates.text("client.key"),
            "ACL",
            "LOG",
        ])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let refused = log.lines().filter(|line| line.contains("command")).count();
    eprintln!("refused: {log}");
    assert_eq!(refused, 0, "{log}");
}
