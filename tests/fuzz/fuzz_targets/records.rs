//! Any bytes in a policy's slot: a complete policy binds or marks the socket, or leaves it alone; otherwise the socket is closed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steer_common::{Kind, Line, PolicyRecord, Verdict, decide, policy_flags};

fuzz_target!(|bytes: [u8; size_of::<PolicyRecord>()]| {
    // SAFETY: plain integers without padding, for which any bytes are valid.
    let record = unsafe { std::mem::transmute::<[u8; size_of::<PolicyRecord>()], PolicyRecord>(bytes) };
    let (steers, exempts) = (record.kind == Kind::Steer as u32, record.kind == Kind::Exempt as u32);
    for netns_cookie in [record.netns_cookie, !record.netns_cookie] {
        let here = record.netns_cookie == netns_cookie;
        match decide(Some(&record), Line::of(&record), netns_cookie) {
            Verdict::Bind(ifindex) => assert!(steers && here && ifindex > 0 && ifindex == record.ifindex),
            Verdict::Mark(mark) => {
                assert!(steers && here && record.flags & policy_flags::ROUTE != 0);
                assert!(mark.value != 0 && mark.value & !mark.mask == 0 && mark.value == record.mark);
            }
            Verdict::Leave(_) => {
                assert!(exempts || steers && !here && record.flags & policy_flags::REFUSE_OTHER_NETNS == 0);
            }
            Verdict::Refuse(_) => assert!(steers && !here),
            Verdict::Close(_) => assert!(!exempts),
        }
    }
    // Its display form is text, whatever the bytes are.
    assert!(steer::kernel::text(&record.name).chars().count() <= record.name.len());
    assert!(steer::kernel::text(&record.interface).chars().count() <= record.interface.len());
});
