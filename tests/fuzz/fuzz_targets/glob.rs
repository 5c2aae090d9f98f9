//! A pattern and a path: if the pattern matches below a cgroup, that cgroup is searched.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steer::model::{cgroup_path::CgroupPath, spec::Pattern};

fuzz_target!(|input: (&str, &str)| {
    let (Ok(pattern), Ok(path)) = (Pattern::parse(input.0), input.1.parse::<CgroupPath>()) else { return };
    let parts: Vec<&str> = path.parts().collect();
    if pattern.matches(&parts) {
        for end in 0..parts.len() {
            assert!(pattern.may_match_below(&parts[..end]), "{} is not watched for {path}", &parts[..end].join("/"));
        }
    }
    if pattern.is_literal() {
        let own: CgroupPath = pattern.as_str().parse().expect("a literal pattern is a path");
        assert_eq!(pattern.matches(&parts), own == path);
    }
});
