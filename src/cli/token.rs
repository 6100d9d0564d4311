//! `qstage token`: the bearer tokens of the service.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::ConfigArgs;
use super::output::{self, Format};
use crate::error::Result;
use crate::service::http::tokens::{Privilege, TokenFile};

/// Make, list and revoke the tokens of the service
///
/// A client of the service sends a token to be allowed what its line in the file of
/// tokens says. The file has the SHA-256 of each token only, and mode 0600. A running
/// service notices every change at the next request.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    New(NewArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// Make a token and print it, once
///
/// Standard output has the token and nothing else: 'qstage token new ops > token'. It
/// cannot be printed again, since only its SHA-256 is stored.
#[derive(Debug, Args)]
struct NewArgs {
    /// Name of the token, for the audit log and for 'revoke'
    #[arg(value_name = "NAME")]
    name: String,

    /// Let its caller read only, not change anything
    #[arg(long)]
    read_only: bool,

    /// Check the name and the file, and make no token
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// List the names and privileges of the tokens
#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Remove a token: from the next request on it is refused
#[derive(Debug, Args)]
struct RevokeArgs {
    /// Name of the token
    #[arg(value_name = "NAME")]
    name: String,

    /// Check the name and the file, and remove nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// File of tokens [default: as configured, or /etc/qstage/tokens]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigArgs,
}

impl CommonArgs {
    fn file(&self) -> Result<TokenFile> {
        match &self.file {
            Some(path) => Ok(TokenFile::new(Some(path))),
            None => Ok(self.config.settings()?.service.tokens()),
        }
    }
}

/// Result of `token new`.
#[derive(Debug, Serialize)]
struct NewToken<'a> {
    name: &'a str,
    privilege: Privilege,
    token: String,
    file: PathBuf,
}

impl TokenArgs {
    pub(super) const fn wants_json(&self) -> bool {
        match &self.verb {
            TokenVerb::New(args) => args.common.json,
            TokenVerb::List(args) => args.common.json,
            TokenVerb::Revoke(args) => args.common.json,
        }
    }

    pub(super) fn run(&self) -> Result<()> {
        match &self.verb {
            TokenVerb::New(args) => args.run(),
            TokenVerb::List(args) => args.run(),
            TokenVerb::Revoke(args) => args.run(),
        }
    }
}

impl NewArgs {
    fn run(&self) -> Result<()> {
        let file = self.common.file()?;
        let privilege = if self.read_only { Privilege::Read } else { Privilege::Write };
        if self.dry_run {
            file.add_dry_run(&self.name)?;
            if self.common.json {
                let report = serde_json::json!({
                    "dry_run": true, "name": self.name, "privilege": privilege, "file": file.path,
                });
                return output::result(Format::Object, &report, |_, _| String::new());
            }
            // Standard output is for the token alone, and there is none.
            let (path, word) = (file.path.display(), privilege.word());
            output::note(&format!(
                "nothing was written: '{}', which may {word}, is new to {path}",
                self.name
            ));
            return Ok(());
        }
        let token = file.add(&self.name, privilege)?;
        if !self.common.json {
            let path = file.path.display();
            output::note(&format!("'{}' may {}; its SHA-256 is in {path}", self.name, privilege.word()));
        }
        let made = NewToken { name: &self.name, privilege, token, file: file.path };
        output::result(Format::object_if(self.common.json), &made, |made, _| format!("{}\n", made.token))
    }
}

impl ListArgs {
    fn run(&self) -> Result<()> {
        let file = self.common.file()?;
        let tokens = file.read()?;
        output::result(Format::object_if(self.common.json), &tokens, |tokens, _| {
            let mut text: String =
                tokens.iter().map(|token| format!("{:5} {}\n", token.privilege.word(), token.name)).collect();
            if text.is_empty() {
                text = format!("no tokens in {}\n", file.path.display());
            }
            text
        })
    }
}

impl RevokeArgs {
    fn run(&self) -> Result<()> {
        let file = self.common.file()?;
        if self.dry_run {
            file.revoke_dry_run(&self.name)?;
            let report = serde_json::json!({ "dry_run": true, "revoked": self.name, "file": file.path });
            return output::result(Format::object_if(self.common.json), &report, |_, _| {
                format!("nothing was written: '{}' is in {}\n", self.name, file.path.display())
            });
        }
        file.revoke(&self.name)?;
        let report = serde_json::json!({ "revoked": self.name, "file": file.path });
        output::result(Format::object_if(self.common.json), &report, |_, _| {
            format!("revoked '{}'\n", self.name)
        })
    }
}
