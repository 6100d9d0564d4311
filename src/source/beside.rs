//! The delta that lies beside a bundle on a server, for what runs here.
//!
//! Its name says which image it starts from: that of the bundle, `.from-`, the first 16 hex digits of the BLAKE3 of the image,
//! `.qdelta`. It is requested before the bundle, by one request for each group of slots; a server that has none says so by
//! 404 or any other refusal. Nothing rests on it: where it is of no use, for whatever reason, the bundle is read.

use std::sync::Arc;

use super::http::{FRONT, Notice, Unreachable, Web};
use crate::bundle::pick::Whole;
use crate::bundle::source::{ReadAt, Source, read_failed};
use crate::bundle::writer::write_members;
use crate::bundle::{Bundle, Trust};
use crate::error::{Error, Result, sentence};
use crate::progress::Cancel;
use crate::source::address::{Url, shown};
use crate::units::Blake3;

/// What decides whether a delta is of use.
pub struct Wish<'a> {
    /// BLAKE3 of the images that run, in the order in which deltas from them are looked for.
    pub running: &'a [Blake3],
    /// Whether an address may be read.
    pub permits: &'a dyn Fn(&Url) -> bool,
    /// Refuses a delta that cannot be applied here.
    pub check: &'a dyn Fn(&Bundle, Option<&Whole>) -> Result<()>,
}

/// How servers are asked.
pub struct Asking<'a> {
    /// The settings of the network.
    pub web: &'a Web,
    /// Who may have signed.
    pub trust: &'a Arc<Trust>,
    /// Raised to stop.
    pub cancel: &'a Cancel,
    /// Takes what a person should know.
    pub notice: &'a Notice,
    /// Servers to which no connection can be made, by what was asked before, and whether one answered.
    pub unreachable: Unreachable,
}

impl Asking<'_> {
    /// The bundle at `url`; or a delta that lies beside it and is of use, with the bundle for frames that it cannot make.
    ///
    /// # Errors
    /// Those of [`Web::read`] and of [`Bundle::open`] for the bundle itself.
    pub fn open(&self, url: &Url, wish: &Wish<'_>) -> Result<(Bundle, Option<Whole>)> {
        let urls = self.web.addresses(url, self.cancel, self.notice)?;
        if !self.web.no_deltas {
            for base in wish.running {
                if let Some(found) = self.delta(&urls, *base, wish)? {
                    return Ok(found);
                }
            }
        }
        let first = self.web.front_only.then_some(FRONT);
        let open = |source| Bundle::open(source, self.trust);
        Ok((self.read_any(urls, first, open)?.0, None))
    }

    /// The bundle at `url` for frames that `delta` cannot make. Nothing is read of it before one is needed, and no more then.
    pub fn whole_at(&self, url: Url, delta: &Bundle) -> Whole {
        let head = Bundle::front_len(delta.release());
        let (web, cancel, notice) = (self.web.clone(), self.cancel.clone(), Arc::clone(self.notice));
        let open = self.opener(Some(head));
        Whole::when_needed(move || open(web.addresses(&url, &cancel, &notice)?))
    }

    /// Opens the bundle at any of some addresses, later. The first request is for `first` bytes; `None`: for the whole file.
    fn opener(&self, first: Option<u64>) -> impl Fn(Vec<Url>) -> Result<Bundle> + Send + 'static {
        let (web, trust) = (self.web.clone(), Arc::clone(self.trust));
        let (cancel, notice) = (self.cancel.clone(), Arc::clone(self.notice));
        let unreachable = self.unreachable.clone();
        move |urls| {
            let open = |source| Bundle::open(source, &trust);
            web.read_any(urls, first, &unreachable, &cancel, &notice, open).map(|(bundle, _)| bundle)
        }
    }

    fn read_any<T>(
        &self,
        urls: Vec<Url>,
        first: Option<u64>,
        open: impl Fn(Source) -> Result<T>,
    ) -> Result<(T, Url)> {
        self.web.read_any(urls, first, &self.unreachable, self.cancel, self.notice, open)
    }

    /// The delta from `base`, where there is one of use.
    fn delta(&self, urls: &[Url], base: Blake3, wish: &Wish<'_>) -> Result<Option<(Bundle, Option<Whole>)>> {
        let beside: Vec<Url> =
            urls.iter().filter_map(|url| beside(url, base)).filter(|url| (wish.permits)(url)).collect();
        // Once a server has sent a delta: its address.
        let Some(mut from) = beside.first().cloned() else { return Ok(None) };
        let all_asked = beside.len() == urls.len();
        match self.try_delta(beside, &mut from, urls, wish) {
            Ok(found) => {
                (self.notice)(&format!("{} is taken instead of the bundle", shown(from.as_str())));
                Ok(Some(found))
            }
            Err(error @ (Error::Interrupted { .. } | Error::Config { .. })) => Err(error),
            // Who cannot be reached has no bundle either. One that answered may have the bundle, and no delta.
            Err(Error::NetworkConnect { url, problem }) if all_asked && !self.unreachable.any_answered() => {
                Err(Error::NetworkConnect { url: bundle_of(url, base), problem })
            }
            Err(Error::NetworkTls { url, problem }) if all_asked && !self.unreachable.any_answered() => {
                Err(Error::NetworkTls { url: bundle_of(url, base), problem })
            }
            Err(Error::NetworkConnect { .. } | Error::NetworkTls { .. }) => Ok(None),
            // That there is none is what is expected.
            Err(Error::Http { .. }) => Ok(None),
            Err(problem) => {
                (self.notice)(&format!("{} is of no use: {}", shown(from.as_str()), sentence(&problem)));
                Ok(None)
            }
        }
    }

    fn try_delta(
        &self,
        beside: Vec<Url>,
        from: &mut Url,
        urls: &[Url],
        wish: &Wish<'_>,
    ) -> Result<(Bundle, Option<Whole>)> {
        let first = self.web.front_only.then_some(FRONT);
        let open = |source| Bundle::open(source, self.trust);
        let delta;
        (delta, *from) = self.read_any(beside, first, open)?;
        if delta.delta().is_none() {
            return Err(Error::Delta { problem: "it is a whole bundle".to_owned() });
        }
        let whole = self.whole(urls, &delta)?;
        (wish.check)(&delta, Some(&whole))?;
        Ok((delta, Some(whole)))
    }

    /// The bundle beside the delta, of which no more is read than shows that it is the same release. A name such as
    /// `latest.qimg` may stand for another release than when the delta was made.
    fn whole(&self, urls: &[Url], delta: &Bundle) -> Result<Whole> {
        let manifest = delta.manifest();
        let mut front = Vec::new();
        write_members(&mut front, &[("manifest.json", manifest.bytes())], manifest.created)?;
        let same = |source| {
            let mut got = vec![0; front.len()];
            let failed = |error| read_failed("manifest.json", 0, error);
            let file = match source {
                Source::File(file) => {
                    file.read_exact_at(&mut got, 0).map_err(failed)?;
                    Some(file)
                }
                Source::Stream(mut stream) | Source::Response(mut stream, _) => {
                    stream.read_exact(&mut got).map_err(failed)?;
                    None
                }
            };
            if got == front {
                return Ok(file);
            }
            Err(Error::Delta { problem: "the bundle beside it is another release".to_owned() })
        };
        let first = Some(front.len() as u64);
        let (file, _): (Option<Arc<dyn ReadAt>>, _) = self.read_any(urls.to_vec(), first, same)?;
        let Some(file) = file else {
            let (open, urls) = (self.opener(None), urls.to_vec());
            return Ok(Whole::in_order(move || open(urls)));
        };
        let (trust, head) = (Arc::clone(self.trust), Bundle::front_len(delta.release()));
        Ok(Whole::when_needed(move || {
            // In one request.
            file.will_read(0, head.min(file.len()));
            Bundle::open(Source::File(file), &trust)
        }))
    }
}

/// The address of the delta from `base` beside a bundle. `None` where there can be none: what has a query was made up for one
/// file.
fn beside(url: &Url, base: Blake3) -> Option<Url> {
    let name = url.path_segments()?.next_back().filter(|name| !name.is_empty())?;
    if url.query().is_some() || name.ends_with(".qdelta") {
        return None;
    }
    let mut delta = url.clone();
    delta.set_fragment(None);
    delta.set_path(&format!("{}{}", url.path(), suffix(base)));
    Some(delta)
}

/// The address of the bundle beside the delta from `base` at `url`: it is the one that the user knows.
fn bundle_of(url: String, base: Blake3) -> String {
    url.strip_suffix(&suffix(base)).map(str::to_owned).unwrap_or(url)
}

/// What the name of a delta has after that of its bundle.
pub(crate) fn suffix(base: Blake3) -> String {
    let hash = base.to_string();
    format!(".from-{}.qdelta", hash.get(..16).unwrap_or(&hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_lies_beside_its_bundle() {
        let base = Blake3([0xab; 32]);
        let of = |url: &str| beside(&url.parse().unwrap(), base).map(|url| url.to_string());
        let suffix = ".from-abababababababab.qdelta";
        assert_eq!(of("http://u:p@h/r/x.qimg#y"), Some(format!("http://u:p@h/r/x.qimg{suffix}")));
        assert_eq!(of("https://h/a%20b"), Some(format!("https://h/a%20b{suffix}")));
        for none in
            ["http://h/", "http://h/r/", "http://h/x.qimg?token=1", "http://h/x.qimg?", "http://h/x.qdelta"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
