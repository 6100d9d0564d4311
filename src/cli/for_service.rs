//! Flags by which the service starts `plan` and `prepare`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::Settings;
use crate::error::{Error, Result};
use crate::source::allowed::Allowed;
use crate::source::http::Web;

/// Flags by which the service starts `plan` and `prepare`. The name of the bundle comes by standard input, since all users can
/// see the arguments of a process, and a URL may contain a password.
#[derive(Debug, Args)]
pub(super) struct ForServiceArgs {
    /// Read the bundle's name from standard input; open only what 'service' allows
    #[arg(long, hide = true)]
    pub(super) for_service: bool,

    /// Fetch the bundle from a member of the cluster with a certificate in this file
    #[arg(long, hide = true, value_name = "FILE", requires = "for_service")]
    from_member: Option<PathBuf>,
}

/// Largest name of a bundle in bytes, which is the largest request to the service.
const NAME_MAX: u64 = 64 << 10;

impl ForServiceArgs {
    /// The name of the bundle: `given`, or standard input up to a zero byte.
    ///
    /// # Errors
    /// [`Error::Argument`]: standard input was empty, or not text.
    pub(super) fn name(&self, given: &Path) -> Result<PathBuf> {
        use std::io::{BufRead, Read};
        if !self.for_service {
            return Ok(given.to_owned());
        }
        let failed =
            |problem: &str| Error::Argument { what: "--for-service".to_owned(), problem: problem.to_owned() };
        let mut name = Vec::new();
        let read = std::io::stdin().lock().take(NAME_MAX).read_until(0, &mut name);
        if read.is_err() || name.pop() != Some(0) {
            return Err(failed("standard input holds no name of a bundle"));
        }
        String::from_utf8(name).map(PathBuf::from).map_err(|_| failed("the name of the bundle is no text"))
    }

    /// The bundles that may be opened; `None`: all that the process can open.
    pub(super) fn allowed(&self, settings: &mut Settings) -> Option<Allowed> {
        if let Some(certificates) = &self.from_member {
            // The service made the URL itself. It is that of a machine that is known by its certificate alone, and which knows
            // this one by that for etcd.
            let (cert, key) =
                settings.cluster.as_ref().map(|own| (own.cert.clone(), own.key.clone())).unzip();
            settings.web = Web {
                ca: Some(certificates.clone()),
                client_certificate: cert.flatten(),
                client_key: key.flatten(),
                proxy: Some("none".to_owned()),
                no_deltas: true,
                redirects: Some(Vec::new()),
                limits: settings.web.limits,
                ..Web::default()
            };
            return None;
        }
        let allowed = self.for_service.then(|| settings.service.allowed())?;
        settings.web.redirects = Some(allowed.hosts(&settings.web.mirrors));
        Some(allowed)
    }
}
