//! ttRPC over a stream socket, as containerd speaks it: a header of ten bytes, then a protobuf message.
//!
//! Two messages and a header are written here rather than taken from the `ttrpc` crate, which would bring some sixty crates
//! (a second `nix`, `bitflags` and `thiserror`, code generators) into the one binary that is every process of a sandbox.
//!
//! Each request is served on a thread of its own: some of them wait for the end of a process.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use prost::Message;

/// The longest message either side accepts (`messageLengthMax`).
const MAX_LEN: u32 = 4 << 20;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// gRPC's codes (`google/rpc/code.proto`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

/// What a call fails with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    timeout_ns: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

struct Frame {
    stream: u32,
    kind: u8,
    body: Vec<u8>,
}

impl Frame {
    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 10];
        from.read_exact(&mut header)?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if len > MAX_LEN {
            return Err(io::Error::other(format!("a message of {len} bytes")));
        }
        let mut body = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        from.read_exact(&mut body)?;
        Ok(Self { stream: u32::from_be_bytes([s0, s1, s2, s3]), kind, body })
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let len = u32::try_from(self.body.len()).ok().filter(|len| *len <= MAX_LEN);
        let len = len.ok_or_else(|| io::Error::other("the message is too long"))?;
        let mut bytes = Vec::with_capacity(10 + self.body.len());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&[self.kind, 0]);
        bytes.extend_from_slice(&self.body);
        to.write_all(&bytes)
    }
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// The reply's bytes to a request of `method`, whose service is `service`.
    fn call(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Failure>;

    /// The reply to a request of this kind has been sent.
    fn sent(&self, _method: &str) {}
}

/// Accepts connections for ever.
pub fn serve(listener: &UnixListener, service: &Arc<impl Service>) {
    for connection in listener.incoming() {
        let Ok(connection) = connection else {
            // No descriptor is free, perhaps: those who wait are served later.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        let service = Arc::clone(service);
        thread::spawn(move || attend(connection, &service));
    }
}

fn attend(mut connection: UnixStream, service: &Arc<impl Service>) {
    let Ok(writer) = connection.try_clone() else { return };
    let writer = Arc::new(Mutex::new(writer));
    while let Ok(frame) = Frame::read(&mut connection) {
        if frame.kind != REQUEST {
            continue;
        }
        let (service, writer) = (Arc::clone(service), Arc::clone(&writer));
        thread::spawn(move || {
            let mut method = String::new();
            let answered = Request::decode(frame.body.as_slice())
                .map_err(|error| Failure::new(Code::InvalidArgument, error.to_string()))
                .and_then(|request| {
                    method.clone_from(&request.method);
                    service.call(&request.service, &request.method, &request.payload)
                });
            let response = match answered {
                Ok(payload) => Response { status: None, payload },
                Err(failure) => {
                    let status = Status { code: failure.code as i32, message: failure.message };
                    Response { status: Some(status), payload: Vec::new() }
                }
            };
            let reply = Frame { stream: frame.stream, kind: RESPONSE, body: response.encode_to_vec() };
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            // Who asked is gone if this fails.
            let _ = reply.write(&mut *writer);
            drop(writer);
            service.sent(&method);
        });
    }
}

/// A connection that makes one call at a time.
#[derive(Debug)]
pub struct Client {
    connection: UnixStream,
    stream: u32,
}

impl Client {
    /// Connects to `address`, a path with or without `unix://`. A call may take at most `patience`.
    pub fn connect(address: &str, patience: Duration) -> io::Result<Self> {
        let connection = UnixStream::connect(address.strip_prefix("unix://").unwrap_or(address))?;
        connection.set_read_timeout(Some(patience))?;
        connection.set_write_timeout(Some(patience))?;
        // The streams of a client have odd numbers.
        Ok(Self { connection, stream: 1 })
    }

    pub fn call(&mut self, service: &str, method: &str, message: &impl Message) -> io::Result<Vec<u8>> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_ns: 0,
        };
        let stream = self.stream;
        self.stream = self.stream.wrapping_add(2);
        Frame { stream, kind: REQUEST, body: request.encode_to_vec() }.write(&mut self.connection)?;
        loop {
            let frame = Frame::read(&mut self.connection)?;
            if frame.stream != stream || frame.kind != RESPONSE {
                continue;
            }
            let response = Response::decode(frame.body.as_slice()).map_err(io::Error::other)?;
            return match response.status.filter(|status| status.code != 0) {
                Some(status) => Err(io::Error::other(status.message)),
                None => Ok(response.payload),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Service for Echo {
        fn call(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Failure> {
            match method {
                "Echo" => Ok(payload.to_vec()),
                _ => Err(Failure::new(Code::Unimplemented, format!("{service} has no {method}"))),
            }
        }
    }

    #[test]
    fn calls_are_answered_and_refused() {
        let path = std::env::temp_dir().join(format!("casemate-ttrpc-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || serve(&listener, &Arc::new(Echo)));
        let mut client = Client::connect(path.to_str().unwrap(), Duration::from_secs(10)).unwrap();
        let message = Status { code: 7, message: "seven".into() };
        let reply = client.call("S", "Echo", &message).unwrap();
        assert_eq!(Status::decode(reply.as_slice()).unwrap(), message);
        let refused = client.call("S", "Other", &message).unwrap_err();
        assert_eq!(refused.to_string(), "S has no Other");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_message_that_is_too_long_is_refused() {
        let header = [0xff, 0, 0, 0, 0, 0, 0, 1, 1, 0];
        assert!(Frame::read(&mut header.as_slice()).is_err());
    }
}
