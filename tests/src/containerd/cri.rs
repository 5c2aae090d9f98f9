//! CRI, the runtime interface of Kubernetes, as far as the tests need it: gRPC on a UNIX socket, with manually written
//! messages.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use tokio::{net::UnixStream, time::timeout};

/// Longer than any call takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Calls a method and waits for its answer. The error is the runtime's message.
pub(super) fn call<A: Message + Default>(socket: &Path, method: &str, question: &impl Message) -> anyhow::Result<A> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(PATIENCE, ask(socket, method, question)).await });
    let answer = answer.with_context(|| format!("{method} takes too long"))??;
    Ok(A::decode(answer)?)
}

async fn ask(socket: &Path, method: &str, question: &impl Message) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.with_context(|| format!("connect to {}", socket.display()))?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let request = http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = sender.send_request(request, false)?;
    let question = question.encode_to_vec();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(question.len())?);
    framed.put_slice(&question);
    body.send_data(framed.freeze(), true)?;

    let (head, mut body) = response.await?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        answer.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let said = |name| trailers.get(name).or(head.headers.get(name)).and_then(|value| value.to_str().ok());
    if said("grpc-status") != Some("0") {
        bail!("{method}: {}", unescaped(said("grpc-message").unwrap_or("no message")));
    }
    ensure!(answer.len() >= 5, "{method}: a truncated answer");
    Ok(answer.split_off(5).freeze())
}

/// Decodes the `%xx` of a message.
fn unescaped(message: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = message.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        let code = code.filter(|_| first == b'%');
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Shared with the host.
pub(super) const NODE: i32 = 2;
/// One for each pod.
pub(super) const POD: i32 = 0;
/// One for each container.
pub(super) const CONTAINER: i32 = 1;
/// The state of a container that has ended.
pub(super) const EXITED: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub(super) network: i32,
    #[prost(int32, tag = "2")]
    pub(super) pid: i32,
    #[prost(int32, tag = "3")]
    pub(super) ipc: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    pub(super) namespaces: Option<NamespaceOption>,
    #[prost(bool, tag = "6")]
    pub(super) privileged: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxSandbox {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(super) security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SandboxMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "3")]
    pub(super) log_directory: String,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(super) annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<SandboxConfig>,
}

/// Requests and answers that contain only an id.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Id {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, tag = "2")]
    pub(super) attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) container_path: String,
    #[prost(string, tag = "2")]
    pub(super) host_path: String,
    #[prost(bool, tag = "3")]
    pub(super) readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Capability {
    #[prost(string, repeated, tag = "1")]
    pub(super) add: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) drop: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerSecurity {
    #[prost(message, optional, tag = "1")]
    pub(super) capabilities: Option<Capability>,
    #[prost(message, optional, tag = "3")]
    pub(super) namespaces: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    pub(super) security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub(super) image: Option<Image>,
    #[prost(string, repeated, tag = "3")]
    pub(super) command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub(super) mounts: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "10")]
    pub(super) annotations: BTreeMap<String, String>,
    #[prost(string, tag = "11")]
    pub(super) log_path: String,
    #[prost(message, optional, tag = "15")]
    pub(super) linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CreateContainer {
    #[prost(string, tag = "1")]
    pub(super) pod: String,
    #[prost(message, optional, tag = "2")]
    pub(super) config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub(super) sandbox: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExecSync {
    #[prost(string, tag = "1")]
    pub(super) container: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) command: Vec<String>,
    #[prost(int64, tag = "3")]
    pub(super) timeout_s: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(super) exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    #[prost(int32, tag = "7")]
    pub(super) exit_code: i32,
    #[prost(string, tag = "11")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RuntimeStatus {
    #[prost(message, optional, tag = "1")]
    status: Option<Conditions>,
}

#[derive(Clone, PartialEq, Message)]
struct Conditions {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    holds: bool,
}

impl RuntimeStatus {
    /// Whether pods can have their own network.
    pub(super) fn is_network_ready(&self) -> bool {
        let mut conditions = self.status.iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.name == "NetworkReady" && condition.holds)
    }
}
