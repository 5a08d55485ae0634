//! HTTP: connections, requests, answers, and the faults between them.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::{FakeDocker, Fault, Socket, api};

/// A request without the version of the API.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    query: Vec<(String, String)>,
    body: Bytes,
}

impl Request {
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// As the daemon reads a flag: anything but these words is yes.
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.query(name).unwrap_or_default().to_ascii_lowercase();
        !matches!(value.trim(), "" | "0" | "no" | "false" | "none")
    }

    pub(super) fn json(&self) -> Result<Value, Reply> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Reply::error(StatusCode::BAD_REQUEST, format!("invalid JSON: {error}")))
    }
}

/// An answer.
pub(super) enum Reply {
    Whole(StatusCode, &'static str, Bytes),
    Stream(&'static str, BoxStream<'static, Bytes>),
}

impl Reply {
    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self::Whole(status, "application/json", Bytes::from(format!("{body}\n")))
    }

    pub(super) fn ok(body: &Value) -> Self {
        Self::json(StatusCode::OK, body)
    }

    pub(super) fn empty(status: StatusCode) -> Self {
        Self::Whole(status, "application/json", Bytes::new())
    }

    pub(super) fn text(text: &'static str) -> Self {
        Self::Whole(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            Bytes::from_static(text.as_bytes()),
        )
    }

    pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Self::json(status, &json!({ "message": message.into() }))
    }
}

pub(super) async fn serve(fake: FakeDocker, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let mut cut = fake.inner.cut.subscribe();
    let service = service_fn(move |request| answer(fake.clone(), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(io), service);
    tokio::select! {
        _ = connection => {}
        _ = cut.changed() => {}
    }
}

pub(super) fn listen_unix(fake: &FakeDocker) -> io::Result<Socket> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("docker.sock");
    let listener = UnixListener::bind(&path)?;
    let fake = fake.clone();
    let listening = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if !fake.inner.down.load(Ordering::SeqCst) {
                tokio::spawn(serve(fake.clone(), client));
            }
        }
    });
    Ok(Socket {
        directory,
        listener: listening.abort_handle(),
        path,
    })
}

pub(super) async fn listen_tcp(fake: &FakeDocker) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let fake = fake.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if !fake.inner.down.load(Ordering::SeqCst) {
                tokio::spawn(serve(fake.clone(), client));
            }
        }
    });
    Ok(address)
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn answer(fake: FakeDocker, request: hyper::Request<Incoming>) -> io::Result<hyper::Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    fake.inner.requests.fetch_add(1, Ordering::SeqCst);
    let fault = fake.strike();
    if fault == Some(Fault::Fail) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    tokio::time::sleep(fake.inner.latency).await;
    let request = Request {
        method: parts.method,
        path: unversioned(parts.uri.path()).to_owned(),
        query: pairs(parts.uri.query().unwrap_or_default()),
        body,
    };
    let reply = api::handle(&fake, &request);
    if fault == Some(Fault::Lose) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let (status, kind, body) = match reply {
        Reply::Whole(status, kind, bytes) => (
            status,
            kind,
            Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
        ),
        Reply::Stream(kind, parts) => {
            let frames = parts.map(|part| Ok::<_, io::Error>(Frame::data(part)));
            (StatusCode::OK, kind, StreamBody::new(frames).boxed_unsync())
        }
    };
    hyper::Response::builder()
        .status(status)
        .header("Content-Type", kind)
        .header("Api-Version", api::API_VERSION)
        .body(body)
        .map_err(io::Error::other)
}

/// A path without `/v1.52` before it.
fn unversioned(path: &str) -> &str {
    let versioned = path.strip_prefix("/v").and_then(|rest| {
        let end = rest.find('/')?;
        let version = &rest[..end];
        let ok = version.contains('.') && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        ok.then(|| &rest[end..])
    });
    versioned.unwrap_or(path)
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (decoded(name), decoded(value))
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_before_the_path_is_tolerated() {
        assert_eq!(unversioned("/v1.52/services"), "/services");
        assert_eq!(unversioned("/services"), "/services");
        assert_eq!(unversioned("/version"), "/version");
        assert_eq!(unversioned("/v1/services"), "/v1/services");
    }

    #[test]
    fn queries_are_decoded() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            pairs("filters=%7B%22a%22%7D&x=1+2&flag"),
            [pair("filters", "{\"a\"}"), pair("x", "1 2"), pair("flag", "")]
        );
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%41"), "%zzA");
    }
}
