//! The Helm chart, and a plain manifest that Helm renders from it.
//!
//! **Invariant**: `docs/daemonset.yaml`, which the integration tests check against the API of Kubernetes and run, is that manifest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{VERSION, archive, printed, recreate};
use crate::cargo;

const CHART: &str = "packaging/chart";
const MANIFEST: &str = "docs/daemonset.yaml";

/// A package of Python with Helm's own library, and one with the schemas of Kubernetes' API.
const TOOLS: [&str; 2] = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];

/// Prints the manifest. A finding of Helm's lint above the severity of a hint is an error.
const RENDER: &str = "\
import sys, helm_python as helm
found = helm.lint(sys.argv[1])
bad = found['errors'] + [message for message in found['messages'] if message['severity'] > 1]
if bad: sys.exit(f'{bad}')
chart = helm.Chart.load(sys.argv[1])
print(''.join(chart.render({'createNamespace': True}, name='steer', namespace='steer').values()), end='')
";

/// Packs the chart and the manifest.
pub(super) fn pack(directory: &Path) -> Result<[PathBuf; 2]> {
    let place = directory.join(".chart");
    unpacked(&place.join("steer"))?;
    let chart = directory.join(format!("steer-chart-{VERSION}.tar"));
    archive::tar(&chart, &place, "steer")?;
    let packed = directory.join(format!("steer-chart-{VERSION}.tgz"));
    let zipped = archive::gzip(&chart)?;
    fs::rename(&zipped, &packed).with_context(|| format!("move {}", zipped.display()))?;
    let documented = cargo::root().join(MANIFEST);
    let documented = fs::read_to_string(&documented).with_context(|| format!("read {MANIFEST}"))?;
    let manifest = directory.join(format!("steer-{VERSION}.yaml"));
    match tools() {
        Ok(python) => {
            let rendered = render(&python, &place.join("steer"))?;
            fs::write(&manifest, &rendered).with_context(|| format!("write {}", manifest.display()))?;
            ensure!(
                rendered == documented,
                "{MANIFEST} is not what the chart renders: copy {} there",
                manifest.display()
            );
        }
        Err(error) => {
            eprintln!("dist: Helm is not to be had here ({error:#}): the manifest is {MANIFEST}, which it rendered");
            fs::write(&manifest, documented).with_context(|| format!("write {}", manifest.display()))?;
        }
    }
    fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    Ok([packed, manifest])
}

/// The chart with its version.
fn unpacked(place: &Path) -> Result<()> {
    recreate(place)?;
    super::copy(&cargo::root().join(CHART), place)?;
    let file = place.join("Chart.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    fs::write(&file, text.replace("@VERSION@", VERSION)).with_context(|| format!("write {}", file.display()))
}

fn render(python: &Path, chart: &Path) -> Result<String> {
    printed(Command::new(python).args(["-c", RENDER]).arg(chart))
}

/// The Python that has the tools, in cargo's target directory.
pub(super) fn tools() -> Result<PathBuf> {
    let place = cargo::target_directory()?.join("helm");
    let python = place.join("bin/python3");
    let has_tools = |python: &Path| {
        let mut ask = Command::new(python);
        ask.args(["-c", "import helm_python, kubernetes_validate"]).stderr(Stdio::null());
        ask.status().is_ok_and(|status| status.success())
    };
    if !has_tools(&python) {
        eprintln!("dist: installing Helm's library in {}", place.display());
        cargo::check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
        cargo::check(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(TOOLS))?;
    }
    Ok(python)
}
