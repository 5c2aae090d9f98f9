//! Tests of the session against a simulated runtime.

use super::*;
use crate::run::container::nri::message::{LinuxContainer, Status};

/// Records the calls, refuses the container "bad", and takes too long for the container "slow".
#[derive(Default)]
struct Notes(Vec<String>);

impl Plugin for Notes {
    async fn synchronize(&mut self, pods: Vec<PodSandbox>, containers: Vec<Container>) {
        let ids: Vec<_> = containers.iter().map(|container| container.id.as_str()).collect();
        self.0.push(format!("synchronize {} {}", pods.len(), ids.join(",")));
        slow(ids.contains(&"slow")).await;
    }

    async fn start_container(&mut self, pod: PodSandbox, container: Container) -> Result<(), String> {
        self.0.push(format!("start {}/{} {}", pod.id, container.id, container.pid));
        slow(container.id == "slow").await;
        if container.id == "bad" { Err("refused: bad".to_owned()) } else { Ok(()) }
    }

    async fn removed(&mut self, _pod: PodSandbox, container: Container) {
        self.0.push(format!("removed {}", container.id));
    }
}

async fn slow(is_slow: bool) {
    if is_slow {
        std::future::pending::<()>().await;
    }
}

/// The runtime's end of the connection.
struct Runtime {
    stream: UnixStream,
    decoder: Decoder,
    calls: u32,
}

impl Runtime {
    async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.take().unwrap() {
                return Some(frame);
            }
            if self.stream.read_buf(self.decoder.buffer()).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn send(&mut self, connection: Connection, stream: u32, kind: Kind, message: &impl Message) {
        let frame = Frame { connection, stream, kind, body: message::encode(message) };
        self.stream.write_all(&frame::encode(&frame)).await.unwrap();
    }

    /// Reads the registration and answers it.
    async fn registration(&mut self, status: Option<Status>) {
        let frame = self.read().await.unwrap();
        assert_eq!((frame.connection, frame.kind), (Connection::Runtime, Kind::Request));
        let request: Request = message::decode("a request", &frame.body).unwrap();
        assert_eq!((request.service.as_str(), request.method.as_str()), (RUNTIME_SERVICE, "RegisterPlugin"));
        let asked: RegisterPluginRequest = message::decode("it", &request.payload).unwrap();
        assert_eq!((asked.plugin_name.as_str(), asked.plugin_idx.as_str()), ("steer", "10"));
        let answer = Response { status, payload: Vec::new() };
        self.send(Connection::Runtime, frame.stream, Kind::Response, &answer).await;
    }

    async fn call(&mut self, method: &str, payload: &impl Message) -> Response {
        self.call_raw(PLUGIN_SERVICE, method, payload.encode_to_vec()).await
    }

    async fn call_raw(&mut self, service: &str, method: &str, payload: Vec<u8>) -> Response {
        self.calls += 2;
        let request = Request { service: service.to_owned(), method: method.to_owned(), payload, timeout_ns: 0 };
        self.send(Connection::Plugin, self.calls, Kind::Request, &request).await;
        let frame = self.read().await.unwrap();
        assert_eq!((frame.connection, frame.stream, frame.kind), (Connection::Plugin, self.calls, Kind::Response));
        message::decode("an answer", &frame.body).unwrap()
    }
}

/// Runs a session to its end. `play` is the runtime's side; when it returns, the connection is closed.
fn session(play: impl AsyncFnOnce(&mut Runtime)) -> (Result<End, Error>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut notes = Notes::default();
        let identity = Identity { name: "steer".to_owned(), index: "10".to_owned() };
        let other = async {
            let mut runtime = Runtime { stream: theirs, decoder: Decoder::default(), calls: 1 };
            play(&mut runtime).await;
        };
        let (end, ()) = tokio::join!(serve(ours, &identity, &mut notes), other);
        (end, notes.0)
    })
}

fn container(id: &str) -> Container {
    let linux = Some(LinuxContainer { cgroups_path: format!("/{id}") });
    Container { id: id.to_owned(), pid: 7, linux, ..Container::default() }
}

fn start(id: &str) -> StateChangeEvent {
    let pod = PodSandbox { id: "pod".to_owned(), ..PodSandbox::default() };
    StateChangeEvent { event: 6, pod: Some(pod), container: Some(container(id)) }
}

fn failure(response: &Response) -> (i32, &str) {
    response.failure().map_or((0, ""), |status| (status.code, &status.message))
}

#[test]
fn a_whole_session() {
    let (end, notes) = session(async |runtime| {
        runtime.registration(None).await;
        let configured = runtime.call("Configure", &ConfigureRequest::default()).await;
        assert_eq!(configured, Response::done(&ConfigureResponse { events: 0x620 }));
        let pieces = [("a", true), ("b", true), ("c", false)];
        for (id, more) in pieces {
            let piece = SynchronizeRequest { pods: vec![PodSandbox::default()], containers: vec![container(id)], more };
            let answer = runtime.call("Synchronize", &piece).await;
            assert_eq!(answer, Response::done(&SynchronizeResponse { more }));
        }
        assert_eq!(runtime.call("StateChange", &start("good")).await, Response::default());
        assert_eq!(failure(&runtime.call("StateChange", &start("bad")).await), (2, "refused: bad"));
        // An event without a subscription is ignored.
        let other = StateChangeEvent { event: 1, ..start("x") };
        assert_eq!(runtime.call("StateChange", &other).await, Response::default());
        // Later runtimes send the event as a separate call.
        let asked = ContainerRequest { pod: None, container: Some(container("bad")) };
        assert_eq!(failure(&runtime.call("StartContainer", &asked).await), (2, "refused: bad"));
        assert_eq!(runtime.call("StopContainer", &asked).await, Response::default());
        assert_eq!(runtime.call("RemoveContainer", &asked).await, Response::default());
        assert_eq!(runtime.call("Shutdown", &Empty {}).await, Response::default());
    });
    assert_eq!(end.unwrap(), End::Shutdown);
    let expected =
        ["synchronize 3 a,b,c", "start pod/good 7", "start pod/bad 7", "start /bad 7", "removed bad", "removed bad"];
    assert_eq!(notes, expected);
}

#[test]
fn configured_before_it_is_registered() {
    let (end, _) = session(async |runtime| {
        let configured = runtime.call_before_registration().await;
        assert_eq!(configured, Response::done(&ConfigureResponse { events: 0x620 }));
    });
    assert_eq!(end.unwrap(), End::Closed);
}

impl Runtime {
    async fn call_before_registration(&mut self) -> Response {
        let registration = self.read().await.unwrap();
        let answer = self.call("Configure", &ConfigureRequest::default()).await;
        self.send(Connection::Runtime, registration.stream, Kind::Response, &Response::default()).await;
        answer
    }
}

#[test]
fn a_runtime_that_rejects_the_plugin() {
    let (end, _) = session(async |runtime| {
        let status = Status { code: 2, message: "invalid index".to_owned() };
        runtime.registration(Some(status)).await;
    });
    let error = end.unwrap_err().to_string();
    assert_eq!(error, "the runtime refused the plugin steer with index 10: invalid index");
}

#[test]
fn work_that_takes_too_long_is_refused_in_time() {
    let (end, notes) = session(async |runtime| {
        runtime.registration(None).await;
        let short_timeout = ConfigureRequest { request_timeout_ms: 40, ..ConfigureRequest::default() };
        runtime.call("Configure", &short_timeout).await;
        // The list is answered in any case.
        let list = SynchronizeRequest { containers: vec![container("slow")], ..SynchronizeRequest::default() };
        assert!(runtime.call("Synchronize", &list).await.failure().is_none());
        let answer = runtime.call("StateChange", &start("slow")).await;
        assert_eq!(failure(&answer), (2, "steer: not steered within 30 ms, so it is not started"));
        assert!(runtime.call("StateChange", &start("good")).await.failure().is_none());
    });
    assert_eq!(end.unwrap(), End::Closed);
    assert_eq!(notes, ["synchronize 0 slow", "start pod/slow 7", "start pod/good 7"]);
}

#[test]
fn unknown_requests_are_answered() {
    let (end, notes) = session(async |runtime| {
        runtime.registration(None).await;
        let answer = runtime.call("Frobnicate", &Empty {}).await;
        assert_eq!(failure(&answer), (12, "this plugin has no method \"Frobnicate\""));
        let answer = runtime.call_raw("other", "Configure", Vec::new()).await;
        assert_eq!(failure(&answer), (12, "this plugin has no service \"other\""));
        for method in ["Configure", "Synchronize", "StateChange", "StartContainer"] {
            let answer = runtime.call_raw(PLUGIN_SERVICE, method, vec![0xff]).await;
            assert_eq!(failure(&answer).0, 3, "{method}");
        }
        let nothing = StateChangeEvent { event: 6, pod: None, container: None };
        let answer = runtime.call("StateChange", &nothing).await;
        assert_eq!(failure(&answer), (3, "the event of a container has no container"));
    });
    assert_eq!(end.unwrap(), End::Closed);
    assert_eq!(notes, Vec::<String>::new());
}

#[test]
fn bytes_that_are_no_request_end_the_session() {
    let cases: [(&[u8], &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", "the runtime sent a frame for connection 1195725856; "),
        (&[0, 0, 0, 1, 0xff, 0, 0, 0], "the runtime announced a message of 4278190080 bytes, "),
        (&[0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0], "the runtime sent a message of type 3, "),
        (&[0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0], "the runtime sent a request on the connection for"),
        (&[0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 9, 2, 0], "the runtime sent an answer without a request"),
        (&[0, 0, 0, 1, 0, 0, 0, 10, 0, 0], "the runtime sent the end of the connection within a message"),
    ];
    for (bytes, message) in cases {
        let (end, _) = session(async |runtime| {
            runtime.registration(None).await;
            runtime.stream.write_all(bytes).await.unwrap();
        });
        let error = end.unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let (end, _) = session(async |runtime| {
        runtime.registration(None).await;
        let body = message::encode(&Response::default());
        let frame = Frame { connection: Connection::Plugin, stream: 1, kind: Kind::Request, body };
        let mut bytes = frame::encode(&frame);
        // A request with a wrong length of its only field.
        bytes[8 + 3] = 2;
        bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x0a, 9]);
        runtime.stream.write_all(&bytes).await.unwrap();
    });
    assert!(end.unwrap_err().to_string().starts_with("the runtime's data cannot be read as a request: "));
}

#[test]
fn the_time_limit_is_shorter_than_the_runtimes() {
    let expected = [(0, 1500), (-1, 1500), (2000, 1500), (1000, 750), (60_000, 45_000), (i64::MAX, 60_000)];
    for (timeout_ms, expected) in expected {
        assert_eq!(time_limit(timeout_ms), Duration::from_millis(expected), "{timeout_ms}");
    }
}
