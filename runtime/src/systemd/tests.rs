//! Properties of limits, and the conversation with a mock of the bus.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;

use super::*;

/// What a call of the mock's said: its method and its body.
type Called = (String, Vec<u8>);

/// A bus with a systemd behind it, for one connection: what `refuses` names is answered by that error, once.
struct Mock {
    address: String,
    calls: mpsc::Receiver<Called>,
}

const JOB_PATH: &str = "/org/freedesktop/systemd1/job/7";

impl Mock {
    fn start(name: &str, refuses: &[(&'static str, &'static str)]) -> Self {
        let path = std::env::temp_dir().join(format!("casemate-bus-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (told, calls) = mpsc::channel();
        let mut refuses = refuses.to_vec();
        let socket = path.clone();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = std::fs::remove_file(&socket);
            stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
            authenticate(&mut stream);
            while let Some((serial, message)) = receive(&mut stream) {
                let refusal = refuses.iter().position(|(member, _)| *member == message.member);
                let error = refusal.map(|at| refuses.remove(at).1);
                told.send((message.member.clone(), message.body.clone())).unwrap();
                answer(&mut stream, serial, &message.member, error);
            }
        });
        Self { address: format!("unix:path={}", path.display()), calls }
    }

    /// The body of the next call of `member`; others before it are dropped.
    fn body(&self, member: &str) -> String {
        loop {
            let (called, body) = self.calls.recv_timeout(Duration::from_mins(1)).unwrap();
            if called == member {
                return String::from_utf8_lossy(&body).into_owned();
            }
        }
    }
}

fn authenticate(stream: &mut UnixStream) {
    let mut line = [0; 16];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"\0AUTH EXTERNAL\r\n");
    stream.write_all(b"DATA\r\n").unwrap();
    let mut line = [0; 6];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"DATA\r\n");
    stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
    let mut line = [0; 7];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"BEGIN\r\n");
}

fn receive(stream: &mut UnixStream) -> Option<(u32, Message)> {
    let mut fixed = [0; wire::FIXED];
    stream.read_exact(&mut fixed).ok()?;
    let mut bytes = fixed.to_vec();
    bytes.resize(wire::total(&fixed).unwrap(), 0);
    stream.read_exact(&mut bytes[wire::FIXED..]).unwrap();
    Some((u32::from_le_bytes(bytes[8..12].try_into().unwrap()), wire::parse(&bytes).unwrap()))
}

fn answer(stream: &mut UnixStream, serial: u32, member: &str, error: Option<&str>) {
    let mut body = Writer::default();
    if let Some(error) = error {
        body.text("no");
        stream.write_all(&wire::answer(serial, Some(error), "s", &body)).unwrap();
        return;
    }
    let job = ["StartTransientUnit", "StopUnit"].contains(&member);
    let mut signature = "";
    if job {
        // The end of other jobs, and of this one, may be told before the answer.
        for (path, result) in [("/other", "failed"), (JOB_PATH, "done")] {
            let mut ended = Writer::default();
            ended.number(7).text(path).text("x.scope").text(result);
            stream.write_all(&wire::signal("JobRemoved", "uoss", &ended)).unwrap();
        }
        body.text(JOB_PATH);
        signature = "o";
    } else if member == "Get" {
        body.variant(&Value::Text("/user.slice/u".into()));
        signature = "v";
    }
    stream.write_all(&wire::answer(serial, None, signature, &body)).unwrap();
}

const NO_UNIT: (&str, &str) = ("GetUnit", "org.freedesktop.systemd1.NoSuchUnit");

#[test]
fn a_scope_is_started_changed_and_stopped() {
    let mock = Mock::start("life", &[NO_UNIT]);
    let mut manager = Manager::at(&mock.address, true).unwrap();
    assert_eq!(manager.place(Path::new("a.slice/b.scope")), Path::new("user.slice/u/a.slice/b.scope"));
    let scope = Scope { slice: "a.slice".into(), unit: "b.scope".into(), given: vec![] };
    manager.make_room(&scope.unit).unwrap();
    manager.start(&scope, "id", 4711, &properties([("pids.max", "9")])).unwrap();
    let asked = mock.body("StartTransientUnit");
    for word in
        ["b.scope", "fail", "Slice", "a.slice", "PIDs", "Delegate", "TasksMax", "casemate container id"]
    {
        assert!(asked.contains(word), "{word}: {asked:?}");
    }
    manager.set("b.scope", &properties([("memory.max", "4096")])).unwrap();
    assert!(mock.body("SetUnitProperties").contains("MemoryMax"));
    manager.stop("b.scope").unwrap();
    assert!(mock.body("StopUnit").contains("replace"));
    mock.body("ResetFailedUnit");
}

#[test]
fn what_annotations_give_is_handed_over() {
    let mock = Mock::start("given", &[NO_UNIT]);
    let mut manager = Manager::at(&mock.address, true).unwrap();
    let annotations =
        [("org.systemd.property.TimeoutStopSec", "5"), ("org.systemd.property.Documentation", "['man:a']")];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let given = given(&annotations).unwrap();
    let scope = Scope { slice: "a.slice".into(), unit: "b.scope".into(), given };
    manager.start(&scope, "id", 4711, &[]).unwrap();
    let asked = mock.body("StartTransientUnit");
    assert!(asked.contains("TimeoutStopUSec") && asked.contains("man:a"), "{asked:?}");
}

#[test]
fn an_older_systemd_is_asked_for_less() {
    let refuses = [("StartTransientUnit", "org.freedesktop.DBus.Error.PropertyReadOnly")];
    let mock = Mock::start("older", &refuses);
    let mut manager = Manager::at(&mock.address, false).unwrap();
    let scope = Scope { slice: "a.slice".into(), unit: "b.scope".into(), given: vec![] };
    let limits = properties([("cpuset.cpus", "0"), ("pids.max", "9")]);
    manager.start(&scope, "id", 1, &limits).unwrap();
    assert!(mock.body("StartTransientUnit").contains("AllowedCPUs"));
    let second = mock.body("StartTransientUnit");
    assert!(!second.contains("AllowedCPUs") && second.contains("TasksMax"));
}

#[test]
fn what_is_refused_is_told() {
    let refuses = [
        ("StartTransientUnit", "org.freedesktop.DBus.Error.AccessDenied"),
        ("StopUnit", "org.freedesktop.systemd1.NoSuchUnit"),
    ];
    let mock = Mock::start("refusal", &refuses);
    let mut manager = Manager::at(&mock.address, false).unwrap();
    let scope = Scope { slice: "a.slice".into(), unit: "b.scope".into(), given: vec![] };
    // It is loaded, and stays so when it is reset.
    assert_eq!(manager.make_room("b.scope").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let error = manager.start(&scope, "id", 1, &[]).unwrap_err();
    assert_eq!(error.to_string(), "no (org.freedesktop.DBus.Error.AccessDenied)");
    manager.stop("b.scope").unwrap();
    assert!(Manager::at("unix:path=/nonexistent/bus", false).is_err());
}

#[test]
fn limits_as_properties() {
    let number = |name, value| (name, Value::Number(value));
    let v2 = [
        ("pids.max", "148"),
        ("memory.max", "1048576"),
        ("memory.swap.max", "max"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "0-1,9"),
        ("memory.max", "4096"),
    ];
    let expected = [
        number("TasksMax", 148),
        number("MemorySwapMax", INFINITY),
        number("CPUWeight", 100),
        ("AllowedCPUs", Value::Bytes(vec![3, 2])),
        number("MemoryMax", 4096),
        number("CPUQuotaPerSecUSec", 500_000),
        number("CPUQuotaPeriodUSec", 100_000),
    ];
    assert_eq!(properties(v2), expected);
    let v1 = [("cpu.cfs_period_us", "30000"), ("cpu.cfs_quota_us", "-1"), ("memory.limit_in_bytes", "-1")];
    let expected = [
        number("MemoryLimit", INFINITY),
        number("CPUQuotaPerSecUSec", INFINITY),
        number("CPUQuotaPeriodUSec", 30_000),
    ];
    assert_eq!(properties(v1), expected);
}

#[test]
fn odd_limits_are_left_out_or_rounded_up() {
    assert_eq!(per_second(Some(1), Some(3_000_000)), 10_000);
    assert_eq!(per_second(Some(33_333), None), 340_000);
    assert_eq!(per_second(Some(u64::MAX), Some(1)), INFINITY);
    for list in ["", "x", "3-1", "0-99999999", "1,-"] {
        assert_eq!(mask(list), None, "{list}");
    }
    assert!(properties([("memory.max", "lots"), ("cpuset.cpus", "9-1")]).is_empty());
}
