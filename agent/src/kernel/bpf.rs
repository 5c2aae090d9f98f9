//! The commands of bpf(2) that aya does not offer: links of any cgroup hook that can be pinned, replaced and detached,
//! the records of a cgroup storage map with a plain cgroup id as key, and queries of attached programs.
//!
//! **Invariant:** one function per command. Each passes a zeroed `bpf_attr` with only that command's fields set, and
//! returns `io::Result`. This module knows no policies.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;
use aya_obj::generated::{BPF_F_QUERY_EFFECTIVE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_prog_info};

fn zeroed_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zero means "not set" to the kernel.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is valid for its whole size, and each caller keeps what it points to alive during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the command returns a new file descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Attaches a program to a cgroup by a link (Linux 5.7), always in addition to other programs (`BPF_F_ALLOW_MULTI`).
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_fd = raw(cgroup);
    attr.link_create.attach_type = hook as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Attaches a tracing program to the function that it was loaded for (Linux 5.5).
pub(super) fn tracing_link_create(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.raw_tracepoint.prog_fd = raw(program);
    bpf_fd(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
}

/// Replaces the program of a link without a gap (Linux 5.7).
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_update.link_fd = raw(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link from its cgroup, even if other processes hold it (Linux 5.9).
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_detach.link_fd = raw(link);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Pins a link, program or map at `path` on a bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens the object pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// The kernel's information about a cgroup link.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    /// Id of the program it runs.
    pub(super) program_id: u32,
    /// Id of the cgroup it is attached to; `None` after it is detached, for example because the cgroup was removed.
    pub(super) cgroup_id: Option<u64>,
}

fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = raw(object);
    attr.info.info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    attr.info.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Reads a cgroup link's state.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: a struct of integers and unions of integers; zero is valid.
    let mut info: bpf_link_info = unsafe { MaybeUninit::zeroed().assume_init() };
    object_info(link, &mut info)?;
    // SAFETY: only cgroup links are pinned by this agent, and the whole union was zeroed before.
    let cgroup_id = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    Ok(LinkInfo { program_id: info.prog_id, cgroup_id: (cgroup_id != 0).then_some(cgroup_id) })
}

/// The kernel's information about a program.
#[derive(Clone, Debug)]
pub(super) struct ProgramInfo {
    pub(super) id: u32,
    /// Hash of the instructions.
    pub(super) tag: [u8; 8],
    /// Length after the verifier, which removes code that cannot run.
    pub(super) xlated_bytes: u32,
    /// Name given by its loader, at most 15 bytes.
    pub(super) name: String,
    /// User that loaded it.
    pub(super) uid: u32,
}

/// Reads a program's identity.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    // SAFETY: a struct of integers; zero is valid and requests none of the optional arrays.
    let mut info: bpf_prog_info = unsafe { MaybeUninit::zeroed().assume_init() };
    object_info(program, &mut info)?;
    let name = info.name.iter().map(|&byte| byte.to_ne_bytes()[0]).take_while(|&byte| byte != 0).collect::<Vec<u8>>();
    Ok(ProgramInfo {
        id: info.id,
        tag: info.tag,
        xlated_bytes: info.xlated_prog_len,
        name: String::from_utf8_lossy(&name).into_owned(),
        uid: info.created_by_uid,
    })
}

/// Opens a program by its id.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr)
}

/// Runs a program once with a packet, whose link layer header it does not see (`BPF_PROG_TEST_RUN`). Returns its result.
pub(super) fn run_with_packet(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = zeroed_attr();
    attr.test.prog_fd = raw(program);
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = u32::try_from(packet.len()).map_err(io::Error::other)?;
    attr.test.repeat = 1;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel has written the result into the member in use.
    Ok(unsafe { attr.test.retval })
}

/// Programs attached to one cgroup itself (not those of its ancestors).
#[derive(Debug)]
pub(super) struct Attached {
    /// The flags of the first attachment: 0, `BPF_F_ALLOW_OVERRIDE` or `_MULTI`. They decide what may be added.
    pub(super) flags: u32,
    pub(super) program_ids: Vec<u32>,
}

/// Queries the programs on a cgroup's hook.
pub(super) fn query(cgroup: BorrowedFd<'_>, hook: bpf_attach_type) -> io::Result<Attached> {
    let mut program_ids = [0_u32; 64];
    let mut attr = zeroed_attr();
    attr.query.__bindgen_anon_1.target_fd = raw(cgroup);
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = program_ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = 64;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the query member is the one in use.
    let answer = unsafe { attr.query };
    // SAFETY: the kernel wrote the count into the field that was given to it.
    let count = unsafe { answer.__bindgen_anon_2.prog_cnt };
    let flags = answer.attach_flags;
    Ok(Attached { flags, program_ids: program_ids.into_iter().take(count as usize).collect() })
}

/// The number of programs that run on a cgroup's hook, those of its ancestors included.
pub(super) fn count_effective(cgroup: BorrowedFd<'_>, hook: bpf_attach_type) -> io::Result<u32> {
    let mut attr = zeroed_attr();
    attr.query.__bindgen_anon_1.target_fd = raw(cgroup);
    attr.query.attach_type = hook as u32;
    attr.query.query_flags = BPF_F_QUERY_EFFECTIVE;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the query member is the one in use.
    let answer = unsafe { attr.query };
    // SAFETY: the kernel wrote the count into the field.
    Ok(unsafe { answer.__bindgen_anon_2.prog_cnt })
}

/// Reads the element of `map` at `key`; `None` when there is none. `V` must have the map's value size.
pub(super) fn map_get<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: zeroed, then written by the kernel, and any bytes are a valid `Pod`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the `length` elements of an array map in one call (Linux 5.6). `V` must have the map's value size.
pub(super) fn array_get_all<V: Pod>(map: BorrowedFd<'_>, length: u32) -> io::Result<Vec<V>> {
    let capacity = usize::try_from(length).map_err(io::Error::other)?;
    let mut keys = vec![0_u32; capacity];
    let mut values: Vec<V> = Vec::with_capacity(capacity);
    let mut next = 0_u32;
    let mut attr = zeroed_attr();
    attr.batch.map_fd = raw(map);
    attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = length;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // The kernel returns ENOENT at the end of the map.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // SAFETY: a plain integer, which the kernel has written.
    let read = unsafe { attr.batch.count }.min(length);
    // SAFETY: the kernel has written this many elements, the capacity holds them, and any bytes are a valid `Pod`.
    unsafe { values.set_len(usize::try_from(read).map_err(io::Error::other)?) };
    Ok(values)
}

/// Writes the element of `map` at `key`. In a cgroup storage it must exist, as it does while attached.
pub(super) fn map_set<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes the element of `map` at `key`. A missing element is no error.
pub(super) fn map_remove<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
