//! TLS of `https` targets.
//!
//! **Invariant:** a certificate is always verified, for the host in the URL.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, Error, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{Failure, stream::Stream};
use crate::model::uplink::probe::Host;

/// How long the host's certificates are kept in memory: reading them takes some milliseconds of a processor.
const FRESH: Duration = Duration::from_hours(1);

/// The host's certificates, as of some time.
static SYSTEM: Mutex<Option<(Instant, Arc<ClientConfig>)>> = Mutex::new(None);

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those that this host trusts: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or where its distribution has them.
    System,
    /// Those that these authorities issued.
    Only(Arc<ClientConfig>),
}

impl Trust {
    /// The authorities in a PEM file.
    pub fn only(pem: &[u8]) -> Result<Self, Failure> {
        let wrong = |error: String| Failure::NoCertificates(error);
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        configuration(certificates.map_err(|error| wrong(error.to_string()))?).map(Self::Only)
    }

    async fn configuration(&self) -> Result<Arc<ClientConfig>, Failure> {
        if let Self::Only(configuration) = self {
            return Ok(Arc::clone(configuration));
        }
        let kept = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, configuration)) = kept.filter(|(read, _)| read.elapsed() < FRESH) {
            return Ok(configuration);
        }
        let reading = tokio::task::spawn_blocking(|| {
            let found = rustls_native_certs::load_native_certs();
            let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
            configuration(found.certs)
                .map_err(|failure| if errors.is_empty() { failure } else { Failure::NoCertificates(errors.join(", ")) })
        });
        let configuration = reading.await.map_err(|ended| Failure::Error(ended.to_string()))??;
        *SYSTEM.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&configuration)));
        Ok(configuration)
    }
}

fn configuration(certificates: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certificates);
    if usable == 0 {
        return Err(Failure::NoCertificates("none found".to_owned()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| Failure::Error(error.to_string()))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Starts TLS on a connection.
pub(super) async fn start(
    stream: Stream,
    host: &Host,
    trust: &Trust,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, Failure> {
    let name = match host {
        Host::Address(address) => ServerName::IpAddress((*address).into()),
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|error| Failure::Error(error.to_string()))?,
    };
    let connector = TlsConnector::from(trust.configuration().await?);
    connector.connect(name, stream).await.map_err(failure)
}

fn failure(error: io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(wrong)) => Failure::Certificate(wrong.to_string()),
        Some(other) => Failure::Protocol(other.to_string()),
        None => error.into(),
    }
}
