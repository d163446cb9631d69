//! Versions on disk: `<registry>/<model>/<number>/`, immutable, and `labels.json` that says which of them serves.

use foreshard_model::{Manifest, Version, VersionError};
use serde::Serialize;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::cost::CostRegistry;
use crate::labels::Labels;
use crate::numbered::{FileError, Reservation, at, published, replace_file};

const LABELS_FILE: &str = "labels.json";
const LOCK_FILE: &str = ".lock";
const TRAINING_FILE: &str = ".training";
/// Name that no model may have: the cost models live there.
const RESERVED: &str = "cost";
/// What a version folder is called while it is being deleted.
const REMOVED: &str = ".removed";

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name that is no folder of a model.
    #[error("{name:?} cannot name a model: use letters, digits, '-', '_' and '.', not first, and not \"cost\"")]
    Name {
        /// The name.
        name: String,
    },
    /// No version of that number.
    #[error("model {model} has no version {number}; {}", listed(.known))]
    Unknown {
        /// The model.
        model: String,
        /// The number.
        number: u64,
        /// What there is.
        known: Vec<u64>,
    },
    /// The labels cannot be read.
    #[error(
        "{} does not hold labels; write {{\"champion\": N, \"challenger\": null, \"last_good\": null}} with the version to serve, or remove it and promote one",
        path.display()
    )]
    Labels {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Somebody else is training.
    #[error(
        "another process is training model {model}; wait until it is done (it holds {})", path.display()
    )]
    Busy {
        /// The model.
        model: String,
        /// The file that it holds.
        path: PathBuf,
    },
    /// A rollback without a version to go back to.
    #[error("model {model} has no good version before its champion to roll back to; promote one by its number")]
    NothingBefore {
        /// The model.
        model: String,
    },
    /// A version folder is damaged.
    #[error("version {number} of model {model} cannot be loaded; promote another version or roll back")]
    Version {
        /// The model.
        model: String,
        /// The number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: Box<VersionError>,
    },
}

fn listed(numbers: &[u64]) -> String {
    if numbers.is_empty() {
        return "it has none yet: train one first".to_owned();
    }
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    format!("there are {}", numbers.join(", "))
}

/// The turn of one trainer of a model; ends when dropped.
#[derive(Debug)]
pub struct TrainingTurn {
    _file: File,
}

/// One version as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionEntry {
    /// Its number.
    pub number: u64,
    /// The labels it bears.
    pub labels: Vec<&'static str>,
    /// Its folder.
    pub path: PathBuf,
}

/// A folder of models and their versions.
///
/// Readers need no lock: version folders never change once they bear their number, and labels are replaced in one step.
/// Writers of labels exclude one another by a lock on a file, which a crash releases.
#[derive(Debug, Clone)]
pub struct Registry {
    root: PathBuf,
}

impl Registry {
    /// Opens a registry, creating its folder if need be.
    ///
    /// # Errors
    /// [`RegistryError::File`] if the folder cannot be created.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RegistryError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(at("create folder", &root))?;
        Ok(Self { root })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cost models beside the versions.
    pub fn cost_models(&self) -> CostRegistry {
        CostRegistry::open(&self.root)
    }

    /// Names of the models that have a folder.
    ///
    /// # Errors
    /// [`RegistryError::File`] if the folder cannot be read.
    pub fn models(&self) -> Result<Vec<String>, RegistryError> {
        let mut names = crate::numbered::names(&self.root)?;
        names.retain(|name| check_name(name).is_ok() && self.root.join(name).is_dir());
        names.sort();
        Ok(names)
    }

    fn folder(&self, model: &str) -> Result<PathBuf, RegistryError> {
        check_name(model)?;
        Ok(self.root.join(model))
    }

    /// The numbers of a model's versions, rising; none for a model that does not exist.
    ///
    /// # Errors
    /// [`RegistryError::Name`] or [`RegistryError::File`].
    pub fn numbers(&self, model: &str) -> Result<Vec<u64>, RegistryError> {
        Ok(published(&self.folder(model)?)?)
    }

    /// All versions of a model with their labels, oldest first.
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::File`] or [`RegistryError::Labels`].
    pub fn list(&self, model: &str) -> Result<Vec<VersionEntry>, RegistryError> {
        let (folder, labels) = (self.folder(model)?, self.labels(model)?);
        let entry =
            |number: u64| VersionEntry { number, labels: labels.of(number), path: folder.join(number.to_string()) };
        Ok(self.numbers(model)?.into_iter().map(entry).collect())
    }

    /// The folder of a version.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] if there is none of that number.
    pub fn path(&self, model: &str, number: u64) -> Result<PathBuf, RegistryError> {
        let path = self.folder(model)?.join(number.to_string());
        if path.is_dir() {
            return Ok(path);
        }
        Err(RegistryError::Unknown { model: model.to_owned(), number, known: self.numbers(model)? })
    }

    /// Loads a version, every checksum verified.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] or [`RegistryError::Version`].
    pub fn load(&self, model: &str, number: u64) -> Result<Version, RegistryError> {
        let path = self.path(model, number)?;
        Version::load(&path).map_err(|error| damaged(model, number, error))
    }

    /// The manifest of a version.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn show(&self, model: &str, number: u64) -> Result<Manifest, RegistryError> {
        Ok(self.load(model, number)?.manifest().clone())
    }

    /// Loads the version that serves, if there is one.
    ///
    /// # Errors
    /// As [`Self::load`], or [`RegistryError::Labels`].
    pub fn champion(&self, model: &str) -> Result<Option<Version>, RegistryError> {
        self.labels(model)?.champion.map(|number| self.load(model, number)).transpose()
    }

    /// The labels of a model; none before the first version.
    ///
    /// # Errors
    /// [`RegistryError::Labels`] if the file is broken.
    pub fn labels(&self, model: &str) -> Result<Labels, RegistryError> {
        let path = self.folder(model)?.join(LABELS_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Labels::default()),
            Err(error) => return Err(at("read", &path)(error).into()),
        };
        serde_json::from_slice(&text).map_err(|source| RegistryError::Labels { path, source })
    }

    /// Replaces the labels of a model. Every version named must exist.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] or [`RegistryError::File`].
    pub fn set_labels(&self, model: &str, labels: &Labels) -> Result<(), RegistryError> {
        self.change_labels(model, |_| Ok(*labels)).map(|_| ())
    }

    /// The version that will be published next gets this number or a higher one.
    ///
    /// # Errors
    /// [`RegistryError::Name`] or [`RegistryError::File`].
    pub fn next_number(&self, model: &str) -> Result<u64, RegistryError> {
        Ok(self.least_number(model)?.max(self.numbers(model)?.last().map_or(1, |n| n + 1)))
    }

    /// A number above all that labels still name, so that no number is ever given out twice.
    fn least_number(&self, model: &str) -> Result<u64, RegistryError> {
        let Labels { champion, challenger, last_good } = self.labels(model)?;
        Ok([champion, challenger, last_good].into_iter().flatten().max().map_or(1, |n| n + 1))
    }

    /// Reserves the next number of a model; write [`Reservation::content`], then [`Self::publish`].
    ///
    /// # Errors
    /// [`RegistryError::Name`] or [`RegistryError::File`].
    pub fn reserve(&self, model: &str) -> Result<Reservation, RegistryError> {
        Ok(Reservation::take(&self.folder(model)?, self.least_number(model)?)?)
    }

    /// Publishes a written reservation and labels it challenger.
    ///
    /// # Errors
    /// [`RegistryError::Version`] if what was staged cannot be loaded (nothing is published then), or
    /// [`RegistryError::File`].
    pub fn publish(&self, model: &str, reservation: Reservation) -> Result<u64, RegistryError> {
        let number = reservation.number();
        Version::load(&reservation.content()).map_err(|error| damaged(model, number, error))?;
        reservation.publish()?;
        self.change_labels(model, |labels| Ok(labels.with_challenger(number)))?;
        Ok(number)
    }

    /// Makes a version champion; the champion before becomes `last_good`. A version that cannot be loaded is refused.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Version`], [`RegistryError::Labels`] or [`RegistryError::File`].
    pub fn promote(&self, model: &str, number: u64) -> Result<Labels, RegistryError> {
        self.load(model, number)?;
        self.change_labels(model, |labels| Ok(labels.promoted(number)))
    }

    /// As [`Self::promote`], but only while the champion is still the one that the version was judged against; false if it
    /// is not, and nothing is changed.
    ///
    /// # Errors
    /// As [`Self::promote`].
    pub fn promote_over(&self, model: &str, number: u64, judged_against: Option<u64>) -> Result<bool, RegistryError> {
        self.load(model, number)?;
        let same = |labels: &Labels| labels.champion == judged_against;
        let after =
            self.change_labels(model, |labels| Ok(if same(&labels) { labels.promoted(number) } else { labels }))?;
        Ok(after.champion == Some(number))
    }

    /// Makes the champion before the champion again.
    ///
    /// # Errors
    /// [`RegistryError::NothingBefore`] if there is none; others as [`Self::promote`].
    pub fn rollback(&self, model: &str) -> Result<Labels, RegistryError> {
        self.change_labels(model, |labels| {
            let back = labels.rolled_back();
            let back = back.ok_or_else(|| RegistryError::NothingBefore { model: model.to_owned() })?;
            back.champion.map_or(Ok(()), |number| self.load(model, number).map(|_| ()))?;
            Ok(back)
        })
    }

    /// Keeps other trainers of a model out while it is held; a process that dies lets go of it.
    ///
    /// # Errors
    /// [`RegistryError::Busy`] if somebody holds it, [`RegistryError::Name`] or [`RegistryError::File`].
    pub fn training(&self, model: &str) -> Result<TrainingTurn, RegistryError> {
        let folder = self.folder(model)?;
        fs::create_dir_all(&folder).map_err(at("create folder", &folder))?;
        let path = folder.join(TRAINING_FILE);
        let file = File::create(&path).map_err(at("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(TrainingTurn { _file: file }),
            Err(TryLockError::WouldBlock) => Err(RegistryError::Busy { model: model.to_owned(), path }),
            Err(TryLockError::Error(error)) => Err(at("lock", &path)(error).into()),
        }
    }

    /// Deletes the oldest versions until `keep` are left; versions that bear a label stay. Returns what was deleted.
    ///
    /// # Errors
    /// [`RegistryError::Labels`] (nothing is deleted while labels cannot be read) or [`RegistryError::File`].
    pub fn prune(&self, model: &str, keep: usize) -> Result<Vec<u64>, RegistryError> {
        let folder = self.folder(model)?;
        let _lock = lock(&folder)?;
        let labels = self.labels(model)?;
        let numbers = self.numbers(model)?;
        let surplus = numbers.len().saturating_sub(keep.max(1));
        // The newest stays even without a label: its number must not be given out again.
        let newest = numbers.last().copied();
        let free = numbers.into_iter().filter(|n| !labels.names(*n) && Some(*n) != newest);
        let doomed: Vec<u64> = free.take(surplus).collect();
        for number in &doomed {
            // Out of sight in one step first, so that nobody loads half a version.
            let (from, to) = (folder.join(number.to_string()), folder.join(format!(".{number}{REMOVED}")));
            fs::rename(&from, &to).map_err(at("remove", &from))?;
            fs::remove_dir_all(&to).map_err(at("remove", &to))?;
        }
        Ok(doomed)
    }

    fn change_labels(
        &self,
        model: &str,
        change: impl FnOnce(Labels) -> Result<Labels, RegistryError>,
    ) -> Result<Labels, RegistryError> {
        let folder = self.folder(model)?;
        fs::create_dir_all(&folder).map_err(at("create folder", &folder))?;
        let _lock = lock(&folder)?;
        let before = self.labels(model)?;
        let after = change(before)?;
        for number in [after.champion, after.challenger, after.last_good].into_iter().flatten() {
            self.path(model, number)?;
        }
        let path = folder.join(LABELS_FILE);
        let text =
            serde_json::to_vec_pretty(&after).map_err(|source| RegistryError::Labels { path: path.clone(), source })?;
        replace_file(&path, &text)?;
        Ok(after)
    }
}

fn damaged(model: &str, number: u64, error: VersionError) -> RegistryError {
    RegistryError::Version { model: model.to_owned(), number, source: Box::new(error) }
}

/// Excludes other writers of labels until dropped; released by the system if this process dies.
fn lock(folder: &Path) -> Result<File, RegistryError> {
    let path = folder.join(LOCK_FILE);
    let file = File::create(&path).map_err(at("create", &path))?;
    file.lock().map_err(at("lock", &path))?;
    Ok(file)
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name != RESERVED;
    if good && name.chars().all(plain) { Ok(()) } else { Err(RegistryError::Name { name: name.to_owned() }) }
}
