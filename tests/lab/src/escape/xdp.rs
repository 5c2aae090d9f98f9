//! AF_XDP: frames passed to the driver in shared memory.
//!
//! **Invariant:** memory shared with the kernel is mapped once and stays mapped until the process ends.

use super::{At, EscapeArgs, Step, Tried};
use crate::sys::{self, set_socket_option};
use socket2::{Domain, Type};

const FRAME_BYTES: u32 = 4096;
const FRAMES: u32 = 4;

impl EscapeArgs {
    /// Sends one frame on the first queue of the other interface. Sending needs no program on it.
    pub(super) fn xdp(&self) -> Tried {
        let socket = self.socket_of(Domain::from(libc::AF_XDP), Type::RAW, None)?;
        let frames = sys::SharedMemory::anonymous((FRAME_BYTES * FRAMES) as usize).at(Step::Place)?;
        // The first version of xdp_umem_reg: address, length, chunk size, headroom.
        let (address, len) = (frames.address(), u64::from(FRAMES * FRAME_BYTES));
        let registration =
            [&address.to_ne_bytes()[..], &len.to_ne_bytes(), &FRAME_BYTES.to_ne_bytes(), &[0; 4]].concat();
        set_socket_option(&socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration).at(Step::Option)?;
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_TX_RING] {
            set_socket_option(&socket, libc::SOL_XDP, ring, &FRAMES.to_ne_bytes()).at(Step::Option)?;
        }
        // For each of four rings: producer, consumer, descriptors, flags. The second ring is for sending.
        let offsets: [u64; 16] = sys::socket_option(&socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS).at(Step::Option)?;
        let [producer, _, descriptors, _] = *offsets[4..].first_chunk().expect("sixteen words");
        let len = usize::try_from(descriptors).unwrap_or_default() + FRAMES as usize * 16;
        let ring = sys::SharedMemory::of(&socket, len, libc::XDP_PGOFF_TX_RING).at(Step::Option)?;
        let frame = self.frame_to_server();
        frames.write(0, &frame);
        socket.bind(&sys::xdp_address(self.other_index()?, libc::XDP_COPY)).at(Step::Bind)?;
        // A descriptor: address, length, options.
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let descriptor = [&0_u64.to_ne_bytes()[..], &len.to_ne_bytes(), &[0; 4]].concat();
        ring.write(usize::try_from(descriptors).unwrap_or_default(), &descriptor);
        ring.publish(usize::try_from(producer).unwrap_or_default(), 1);
        socket.send_with_flags(&[], libc::MSG_DONTWAIT).at(Step::Send)?;
        Ok("sent".to_owned())
    }
}
