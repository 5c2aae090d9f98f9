//! The messages: the envelope of ttrpc, and the messages of NRI that are needed by a plugin which does not change containers.
//!
//! **Invariant:** field numbers are those of the `.proto` files. Unknown fields are skipped.

use std::collections::BTreeMap;

use bytes::BytesMut;
use prost::Message;

use super::Error;

/// The service that a runtime offers.
pub(super) const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// The service that a plugin offers.
pub(super) const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// A call.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub(super) timeout_ns: i64,
}

/// The answer to a call.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) payload: Vec<u8>,
}

impl Response {
    /// A successful answer.
    pub(super) fn done(payload: &impl Message) -> Self {
        Self { status: None, payload: payload.encode_to_vec() }
    }

    /// An answer that reports a failure.
    pub(super) fn failed(code: Code, message: String) -> Self {
        Self { status: Some(Status { code: code.number(), message }), payload: Vec::new() }
    }

    /// The failure, if there is one.
    pub(super) fn failure(&self) -> Option<&Status> {
        self.status.as_ref().filter(|status| status.code != 0)
    }
}

/// Why a call failed.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// The kind of a failure, by the numbers of gRPC.
#[derive(Clone, Copy, Debug)]
pub(super) enum Code {
    Unknown,
    InvalidArgument,
    Unimplemented,
}

impl Code {
    fn number(self) -> i32 {
        match self {
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::Unimplemented => 12,
        }
    }
}

/// A message without fields.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Empty {}

/// The plugin introduces itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    pub(super) plugin_name: String,
    #[prost(string, tag = "2")]
    pub(super) plugin_idx: String,
}

/// The runtime introduces itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigureRequest {
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
    /// The timeout of a request. Zero from runtimes that do not send it (NRI 0.6).
    #[prost(int64, tag = "5")]
    pub(super) request_timeout_ms: i64,
}

/// The events that the plugin subscribes to: bit `n - 1` for event `n`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ConfigureResponse {
    #[prost(int32, tag = "2")]
    pub(super) events: i32,
}

/// All pods and containers that exist, in one message or in several.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SynchronizeRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) pods: Vec<PodSandbox>,
    #[prost(message, repeated, tag = "2")]
    pub(super) containers: Vec<Container>,
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

/// An answer that changes no container.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct SynchronizeResponse {
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
}

/// An event of a pod or a container.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StateChangeEvent {
    #[prost(int32, tag = "1")]
    pub(super) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "3")]
    pub(super) container: Option<Container>,
}

/// An event of a container, as a separate call.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "2")]
    pub(super) container: Option<Container>,
}

/// The events that this plugin handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Start,
    Stop,
    Remove,
}

impl Event {
    /// All of them, as a subscription.
    pub(super) const MASK: i32 = Self::Start.bit() | Self::Stop.bit() | Self::Remove.bit();

    const fn number(self) -> i32 {
        match self {
            Self::Start => 6,
            Self::Stop => 10,
            Self::Remove => 11,
        }
    }

    const fn bit(self) -> i32 {
        1 << (self.number() - 1)
    }

    /// The event of a number in a [`StateChangeEvent`].
    pub(super) fn of_number(number: i32) -> Option<Self> {
        [Self::Start, Self::Stop, Self::Remove].into_iter().find(|event| event.number() == number)
    }

    /// The event of a call. Runtimes before NRI 0.11 have a call only for stopping.
    pub(super) fn of_method(name: &str) -> Option<Self> {
        match name {
            "StartContainer" => Some(Self::Start),
            "StopContainer" => Some(Self::Stop),
            "RemoveContainer" => Some(Self::Remove),
            _ => None,
        }
    }
}

/// A pod.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its namespace in the cluster.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// All of its annotations.
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
    /// Its Linux properties.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandbox>,
}

/// The Linux properties of a pod.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandbox {
    /// The cgroup that its containers are in.
    #[prost(string, tag = "3")]
    pub cgroup_parent: String,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The id of its pod.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Its state.
    #[prost(enumeration = "State", tag = "4")]
    pub state: i32,
    /// All of its annotations.
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
    /// Its Linux properties.
    #[prost(message, optional, tag = "11")]
    pub linux: Option<LinuxContainer>,
    /// Its first process, in the runtime's PID namespace; 0 while there is none.
    #[prost(uint32, tag = "12")]
    pub pid: u32,
}

/// The Linux properties of a container.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainer {
    /// Its cgroup, in the form that the runtime was given: a path, or the parts of a systemd unit's name.
    #[prost(string, tag = "5")]
    pub cgroups_path: String,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// Unknown to the runtime.
    Unknown = 0,
    /// Created, and not started.
    Created = 1,
    /// Paused.
    Paused = 2,
    /// Running.
    Running = 3,
    /// Stopped.
    Stopped = 4,
}

/// Reads a message.
pub(super) fn decode<T: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    T::decode(bytes).map_err(|source| Error::Undecodable { what, source })
}

/// Writes a message.
pub(super) fn encode(message: &impl Message) -> BytesMut {
    BytesMut::from(&message.encode_to_vec()[..])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_format_of_ttrpc() {
        let register = RegisterPluginRequest { plugin_name: "steer".to_owned(), plugin_idx: "10".to_owned() };
        assert_eq!(register.encode_to_vec(), b"\x0a\x05steer\x12\x0210");
        let request = Request { service: "s".to_owned(), method: "m".to_owned(), payload: vec![7], timeout_ns: 5 };
        assert_eq!(encode(&request)[..], *b"\x0a\x01s\x12\x01m\x1a\x01\x07\x20\x05");
    }

    #[test]
    fn answers_have_the_format_of_ttrpc() {
        let events = Response::done(&ConfigureResponse { events: Event::MASK });
        // Bits 5, 9 and 10: 0x620.
        assert_eq!(encode(&events)[..], *b"\x12\x03\x10\xa0\x0c");
        assert_eq!(encode(&Response::done(&Empty {}))[..], *b"");
        let failed = Response::failed(Code::Unknown, "no".to_owned());
        assert_eq!(encode(&failed)[..], *b"\x0a\x06\x08\x02\x12\x02no");
        assert!(failed.failure().is_some() && events.failure().is_none());
    }

    #[test]
    fn an_event_is_read_and_unknown_fields_are_skipped() {
        let bytes = [
            b"\x08\x06".as_slice(),                        // event 6
            b"\x12\x18\x0a\x01p\x22\x07default",           // pod: id, namespace
            b"\x32\x08\x0a\x01k\x12\x01v\x1a\x00\x7a\x00", // annotation with a field too many; field 15
            // container: ids, cgroup, pid, field 99
            b"\x1a\x12\x0a\x01c\x12\x01p\x5a\x04\x2a\x02/x\x60\xd2\x09\x98\x06\x01",
        ]
        .concat();
        let event: StateChangeEvent = decode("a state change", &bytes).unwrap();
        assert_eq!(Event::of_number(event.event), Some(Event::Start));
        let (pod, container) = (event.pod.unwrap(), event.container.unwrap());
        assert_eq!((pod.id.as_str(), pod.namespace.as_str()), ("p", "default"));
        assert_eq!(pod.annotations, BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        assert_eq!((container.id.as_str(), container.pod_sandbox_id.as_str(), container.pid), ("c", "p", 1234));
        assert_eq!(container.linux.unwrap().cgroups_path, "/x");
        assert_eq!(container.state, State::Unknown as i32);
    }

    #[test]
    fn a_truncated_message_or_a_wrong_length_is_an_error() {
        let whole = encode(&SynchronizeRequest {
            pods: vec![PodSandbox { id: "pod".to_owned(), ..PodSandbox::default() }],
            containers: vec![Container { id: "c".to_owned(), pid: 9, ..Container::default() }],
            more: false,
        });
        assert!(decode::<SynchronizeRequest>("a list", &whole).is_ok());
        for bytes in [&whole[..whole.len() - 1], b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xff", b"\xff"] {
            let error = decode::<SynchronizeRequest>("a list", bytes).unwrap_err().to_string();
            assert!(error.starts_with("the runtime's data cannot be read as a list: "), "{error}");
        }
    }
}
