//! Requests to a daemon, real or simulated, and a list of what was not as expected.
#![allow(dead_code, unreachable_pub)]

use std::fmt::Debug;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use saasodoo_testkit::fake_docker::FakeDocker;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

pub enum Api {
    Fake(FakeDocker),
    Unix(PathBuf),
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Null for what is no JSON.
    pub body: Value,
    pub bytes: Bytes,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Api {
    async fn connect(&self) -> Box<dyn Connection> {
        match self {
            Self::Fake(docker) => Box::new(docker.connect().expect("it is up")),
            Self::Unix(socket) => Box::new(UnixStream::connect(socket).await.expect("a daemon")),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let connection = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(connection).await.expect("HTTP");
        tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "docker")
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a whole answer").to_bytes();
        Answer {
            status,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            bytes,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, None).await
    }

    /// Its time, as requests have it.
    pub fn now(&self) -> String {
        let now = match self {
            Self::Fake(docker) => docker.now(),
            Self::Unix(_) => jiff::Timestamp::now(),
        };
        format!("{}.{:09}", now.as_second(), now.subsec_nanosecond())
    }
}

/// A value as a query has it.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let byte = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(byte).collect()
}

/// The frames of a log: which output, and what.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, String)> {
    let mut frames = Vec::new();
    while let [output, _, _, _, a, b, c, d, rest @ ..] = bytes {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).expect("a length");
        let (text, rest) = rest.split_at(length.min(rest.len()));
        frames.push((*output, String::from_utf8_lossy(text).into_owned()));
        bytes = rest;
    }
    frames
}

/// What was not as expected.
#[derive(Debug, Default)]
pub struct Findings(Vec<String>);

impl Findings {
    pub fn say(&mut self, what: &str, seen: impl AsRef<str>) {
        self.0.push(format!("{what}: {}", seen.as_ref()));
    }

    pub fn equal<T: PartialEq + Debug>(&mut self, what: &str, seen: &T, expected: &T) {
        if seen != expected {
            self.say(what, format!("expected {expected:?}, saw {seen:?}"));
        }
    }

    pub fn answer(&mut self, what: &str, answer: &Answer, status: u16, message: &str) {
        let seen = (answer.status, answer.message());
        self.equal(what, &json!(seen), &json!((status, message)));
    }

    pub fn assert_none(&self) {
        assert!(
            self.0.is_empty(),
            "{} differences:\n{}",
            self.0.len(),
            self.0.join("\n")
        );
    }
}
