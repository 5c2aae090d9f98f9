//! A thread that serves sockets of a namespace until it is dropped.

use crate::{
    error::{Doing, Result},
    netns::Netns,
};
use std::{
    io,
    thread::{self, JoinHandle},
};
use tokio::sync::oneshot;

/// A running service. It stops on drop.
#[derive(Debug)]
pub(crate) struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Calls `spawn` on a separate runtime, where it starts the tasks that serve. Returns when `spawn` has returned.
    pub(crate) fn start(netns: &Netns, spawn: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name(format!("server-{netns}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            // The receiver waits for this message.
            match runtime.and_then(|runtime| runtime.block_on(async { spawn() }).map(|()| runtime)) {
                Ok(runtime) => {
                    ready.send(Ok(())).ok();
                    runtime.block_on(stopped).ok();
                }
                Err(error) => {
                    ready.send(Err(error)).ok();
                }
            }
        });
        let thread = thread.doing(|| format!("start the server of {netns}"))?;
        is_ready
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the server's thread ended")))
            .doing(|| format!("start the server of {netns}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has already printed its panic; a second panic here would abort.
            thread.join().ok();
        }
    }
}
