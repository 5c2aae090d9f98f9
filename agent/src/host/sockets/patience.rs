//! Calls on the sockets of other processes, with a time limit.
//!
//! A program can hold the lock of its socket for as long as it wants: the kernel takes the lock, and then reads what the program sends from
//! memory that the program fills late (a file of FUSE, or `userfaultfd`). A call on that socket waits meanwhile and cannot be interrupted,
//! not even by SIGKILL. So it runs in a thread that is given up after the limit.
//!
//! A process that ends meanwhile stays as a zombie until the program lets go. The thread has descriptors of its own, so that the locks and
//! sockets of the process are free then.
//!
//! **Invariant:** nobody waits longer than [`LIMIT`] for a call, and at most [`MOST`] times in one [`Patience`]. A thread that was given up
//! ends with its call, and starts no other one. A call uses no descriptor of the process, and opens its own.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

/// Such a call takes some microseconds.
const LIMIT: Duration = Duration::from_millis(300);
/// How many calls are given up before the others are not tried.
const MOST: usize = 8;
/// How many threads may wait for a call that was given up, in this process.
const MOST_THREADS: usize = 64;

/// The first descriptor after the standard streams.
const FIRST_OWN: libc::c_uint = 3;

static WAITING_THREADS: AtomicUsize = AtomicUsize::new(0);

type Job = Box<dyn FnOnce() + Send>;

/// Who may hold up a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// The user of the socket.
    User(u32),
    /// The process that has it open.
    Process(i32),
}

/// Runs calls one after the other, each with the limit. After a call was given up, those of the same owner are not tried.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    jobs: RefCell<Option<mpsc::Sender<Job>>>,
    given_up: RefCell<BTreeSet<Owner>>,
    count: Cell<usize>,
}

impl Patience {
    /// The result of the call. [`io::ErrorKind::TimedOut`]: it was given up, or not tried. It may still be carried out later.
    ///
    /// The call runs in the network namespace of the thread that makes the first one.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        owner: Owner,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.given_up.borrow().contains(&owner) || self.count.get() >= MOST {
            return Err(held());
        }
        let (done, result) = mpsc::sync_channel(1);
        // Nobody waits any longer if the call was given up.
        let job: Job = Box::new(move || drop(done.send(call())));
        self.send(job)?;
        match result.recv_timeout(LIMIT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("a call on a socket has panicked")),
            Err(RecvTimeoutError::Timeout) => {
                WAITING_THREADS.fetch_add(1, Ordering::Relaxed);
                // The thread counts itself when the call returns.
                if let Some(jobs) = self.jobs.take() {
                    drop(jobs.send(Box::new(|| {
                        WAITING_THREADS.fetch_sub(1, Ordering::Relaxed);
                    })));
                }
                self.given_up.borrow_mut().insert(owner);
                self.count.set(self.count.get() + 1);
                Err(held())
            }
        }
    }

    fn send(&self, job: Job) -> io::Result<()> {
        let mut jobs = self.jobs.borrow_mut();
        if jobs.is_none() {
            if WAITING_THREADS.load(Ordering::Relaxed) >= MOST_THREADS {
                return Err(held());
            }
            let (sender, receiver) = mpsc::channel::<Job>();
            let work = move || {
                leave_descriptors();
                for job in receiver {
                    job();
                }
            };
            thread::Builder::new().name("sockets".to_owned()).spawn(work)?;
            *jobs = Some(sender);
        }
        let sent = jobs.as_ref().map(|jobs| jobs.send(job).is_ok());
        if sent == Some(true) { Ok(()) } else { Err(io::Error::other("a thread for calls on sockets has ended")) }
    }
}

/// Gives the calling thread a table of descriptors of its own, with the standard streams only.
fn leave_descriptors() {
    if let Err(error) = unshare(CloneFlags::CLONE_FILES) {
        log::debug!("a thread for calls on sockets shares the descriptors: {error}");
        return;
    }
    // SAFETY: no pointers. The descriptors are copies of this thread alone, and nothing in it owns one yet (Linux 5.9).
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_OWN, libc::c_uint::MAX, 0) };
}

fn held() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a program of its user holds a socket locked")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, ErrorKind},
        sync::mpsc,
        time::Instant,
    };

    use super::{LIMIT, Owner, Patience};

    #[test]
    fn one_owner_holds_up_nobody_else() {
        let patience = Patience::default();
        let (release, held) = mpsc::channel::<()>();
        let begun = Instant::now();
        let answer = patience.run(Owner::User(1), move || Ok(held.recv().is_ok()));
        assert_eq!(answer.map_err(|error| error.kind()), Err(ErrorKind::TimedOut));
        assert!(begun.elapsed() >= LIMIT);
        let again: io::Result<()> = patience.run(Owner::User(1), || unreachable!("it is not tried"));
        assert!(again.is_err());
        assert_eq!(patience.run(Owner::User(2), || Ok(7)).ok(), Some(7));
        drop(release);
    }

    #[test]
    fn errors_are_those_of_the_call() {
        let answer = Patience::default().run(Owner::Process(1), || Err::<(), _>(ErrorKind::NotFound.into()));
        assert_eq!(answer.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
    }
}
