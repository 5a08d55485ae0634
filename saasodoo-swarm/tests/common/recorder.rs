//! An HTTP server on a Unix socket that keeps what it is asked and answers as it is told.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixListener;

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without the API version that a later bollard may put before it.
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.path))
    }

    pub fn filters(&self) -> Value {
        let text = self.query.get("filters").map_or("{}", String::as_str);
        serde_json::from_str(text).expect("filters are JSON")
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).cloned()
    }
}

pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(status: u16, body: Value) -> Self {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        Self { status, body }
    }
}

type Answer = Arc<Mutex<Arc<dyn Fn(&Request) -> Reply + Send + Sync>>>;

pub struct Recorder {
    directory: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
    answer: Answer,
}

impl Recorder {
    pub fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let answer: Answer = Arc::new(Mutex::new(Arc::new(answer)));
        let (kept, answers) = (Arc::clone(&requests), Arc::clone(&answer));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (kept, answers) = (Arc::clone(&kept), Arc::clone(&answers));
                tokio::spawn(async move {
                    let service = service_fn(|request| take(request, Arc::clone(&kept), Arc::clone(&answers)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(client), service)
                        .await;
                });
            }
        });
        Self {
            directory,
            requests,
            answer,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    pub fn forget(&self) {
        self.requests.lock().expect("no panic").clear();
    }

    pub fn replace(&self, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.answer.lock().expect("no panic") = Arc::new(answer);
    }
}

async fn take(
    request: hyper::Request<hyper::body::Incoming>,
    kept: Arc<Mutex<Vec<Request>>>,
    answers: Answer,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let versioned = path
        .strip_prefix("/v")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(version, _)| version.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let path = versioned.map_or_else(|| path.to_owned(), |(_, rest)| format!("/{rest}"));
    let query = parts.uri.query().unwrap_or_default();
    let request = Request {
        method: parts.method.to_string(),
        path,
        query: query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
            .collect(),
        body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
    };
    kept.lock().expect("no panic").push(request.clone());
    let answer = Arc::clone(&answers.lock().expect("no panic"));
    let reply = answer(&request);
    let response = hyper::Response::builder().status(reply.status).body(Full::new(Bytes::from(reply.body)));
    Ok(response.expect("a status"))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&digits, 16).expect("two digits"));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
