//! Tells containerd what happens, in the order in which it happens.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use prost::Message;

use crate::messages::{Any, Envelope, ForwardRequest};
use crate::ttrpc::Client;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// How long containerd may take to accept an event.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often an event is offered, with a second in between: containerd may be restarting.
const ATTEMPTS: u32 = 5;

enum Item {
    Event(Box<Envelope>),
    /// Everything before is sent, or given up.
    Flush(Sender<()>),
}

/// A queue of events.
#[derive(Debug, Clone)]
pub struct Events {
    queue: Sender<Item>,
    namespace: String,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl Events {
    /// Events of `namespace` for the containerd that listens at `address`; an empty one takes none.
    pub fn new(address: String, namespace: &str) -> Self {
        let (queue, items) = mpsc::channel();
        thread::spawn(move || forward(&address, &items));
        Self { queue, namespace: namespace.to_owned() }
    }

    /// Puts an event of `topic`, such as `/tasks/start`, with the name that its message has in `containerd.events`.
    pub fn put(&self, topic: &str, name: &str, message: &impl Message) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any::of(&format!("containerd.events.{name}"), message)),
        };
        // The thread is there as long as the process is.
        let _ = self.queue.send(Item::Event(Box::new(envelope)));
    }

    /// Waits until what was put is sent, but not for ever.
    pub fn flush(&self) {
        let (done, over) = mpsc::channel();
        let _ = self.queue.send(Item::Flush(done));
        let _ = over.recv_timeout(PATIENCE);
    }
}

fn forward(address: &str, items: &Receiver<Item>) {
    let mut client = None;
    while let Ok(item) = items.recv() {
        let envelope = match item {
            Item::Event(envelope) if !address.is_empty() => *envelope,
            Item::Event(_) => continue,
            Item::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let request = ForwardRequest { envelope: Some(envelope) };
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // The first failure is most often that of a connection which containerd has closed.
                thread::sleep(if attempt == 1 { Duration::ZERO } else { Duration::from_secs(1) });
            }
            let connected = match client.take() {
                Some(client) => Ok(client),
                None => Client::connect(address, PATIENCE),
            };
            let sent = connected.and_then(|mut client| {
                client.call(SERVICE, "Forward", &request)?;
                Ok(client)
            });
            match sent {
                Ok(again) => {
                    client = Some(again);
                    break;
                }
                Err(error) => {
                    let topic = request.envelope.as_ref().map_or("", |envelope| &envelope.topic);
                    eprintln!("casemate shim: event {topic}: {error}");
                }
            }
        }
    }
}
