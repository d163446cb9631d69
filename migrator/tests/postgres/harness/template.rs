//! One empty cluster, made once and copied for each server.
//!
//! `initdb` takes seconds on a busy machine, and test runners give each test a process: the copy is kept beside the
//! test binaries, under a name that says what it was made with.

use super::process::{as_server, folder, postgres_bin, run, write};
use super::server::{ADMIN, ADMIN_PASSWORD, APP, APP_PASSWORD};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tokio::sync::OnceCell;

static TEMPLATE: OnceCell<PathBuf> = OnceCell::const_new();

/// The folder of an empty cluster with the two users. It is never started: copy it.
pub async fn template() -> &'static Path {
    TEMPLATE.get_or_init(find_or_make).await
}

/// What a change of which makes another template.
const RECIPE: u32 = 1;

async fn find_or_make() -> PathBuf {
    let version = postgres_bin().to_string_lossy().replace('/', "-");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster{version}-{RECIPE}"));
    if kept.exists() {
        return kept;
    }
    let made = make().await;
    // Another process may have come first: its copy is as good.
    let mine = tempfile::Builder::new().prefix("cluster-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let copy = mine.path().join("data");
    copy_to(&made.path().join("data"), &copy).await;
    if std::fs::rename(&copy, &kept).is_err() {
        assert!(kept.exists(), "{} cannot be put in place", kept.display());
    }
    kept
}

async fn make() -> tempfile::TempDir {
    let folder = folder("foreshard-initdb-", None);
    let data = folder.path().join("data");
    let password = folder.path().join("password");
    write(&password, ADMIN_PASSWORD);
    let mut initdb = as_server(&postgres_bin().join("initdb"));
    initdb.args(["--no-sync", "--no-instructions", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]);
    initdb.arg(format!("--username={ADMIN}")).arg(format!("--pwfile={}", password.display())).arg(&data);
    initdb.current_dir(folder.path());
    run(initdb).await;
    let roles = folder.path().join("roles.sql");
    write(&roles, &format!("CREATE ROLE {APP} LOGIN PASSWORD '{APP_PASSWORD}';\n"));
    let mut single = as_server(&postgres_bin().join("postgres"));
    single.args(["--single", "-F", "-D"]).arg(&data).arg("postgres").current_dir(folder.path());
    single.stdin(Stdio::from(std::fs::File::open(&roles).unwrap()));
    run(single).await;
    folder
}

/// Copies a folder with its owners and modes.
pub async fn copy_to(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    run(copy).await;
}
