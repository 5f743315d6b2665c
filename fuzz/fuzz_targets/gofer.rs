//! The decoders of the gofer's protocol, both sides: any bytes give a value or an error, and a request that was decoded
//! is encoded to one that decodes again.
#![no_main]

use gofer_protocol::{Hello, Reply, Request, RequestWriter};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = Request::decode(bytes) {
        let mut out = Vec::new();
        if RequestWriter::encode(&request, &mut out).is_ok() {
            assert!(Request::decode(&out).is_ok(), "an encoded request does not decode");
        }
    }
    let _ = Hello::decode(bytes);
    if let Ok(Ok(mut reply)) = Reply::decode(bytes) {
        let _ = (reply.value(), reply.fid(), reply.has_descriptor());
        match bytes.first().map_or(0, |b| b % 4) {
            0 => drop(reply.attr()),
            1 => drop(reply.stat_fs()),
            2 => drop(reply.bytes()),
            _ => while let Ok(Some(_)) = reply.entry() {},
        }
    }
});
