//! From the contents of files to what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::Cursor;
use super::problem::{Invalid, Problem};
use super::settings::Settings;
use super::{tree, ztunnel};
use crate::manifest::{self, assemble};
use crate::model::{Batch, ResourceName, Service, Update, Verdict, Workload, WorkloadGroup};

/// Turns the contents of files into batches of what changed; keeps the last good version of all.
///
/// A state machine without I/O: the same contents in the same order give the same batches. A load
/// costs time in proportion to the files; the batch holds only what differs from the load before.
#[derive(Debug)]
pub struct Loader {
    settings: Settings,
    /// The objects of each file as they are in effect.
    files: BTreeMap<PathBuf, Vec<Entry>>,
    resources: BTreeMap<ResourceName, Resource>,
    /// What the last load said to be skipped, or would have said again.
    named: BTreeSet<String>,
    /// All of it, at most [`MAX_WARNINGS`].
    skipped: Vec<Problem>,
    /// Whether all files could be read at once, ever.
    complete: bool,
}

/// An object in effect.
#[derive(Debug, Clone)]
struct Entry {
    key: String,
    line: u32,
    object: Object,
    /// It only stands for one that could not be read.
    stands: bool,
}

#[derive(Debug, Clone)]
enum Object {
    Manifest(Arc<manifest::Object>),
    Ztunnel(Arc<ztunnel::Object>),
}

#[derive(Debug, PartialEq)]
struct Resource {
    update: Update,
    file: Arc<Path>,
    line: u32,
}

/// What became of a load.
#[derive(Debug)]
pub struct Loaded {
    batch: Batch,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    skipped: Vec<Problem>,
    complete: bool,
}

impl Loaded {
    /// What changed since the load before.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// What was refused, in the order of files and lines.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Fields that were passed over because the kind has none of this name, and policies that choose no workload of these
    /// files, in the order of files and lines, 100 at most: most likely slips. The objects are in effect, without the fields.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Kinds that were skipped, where they were first, objects that make nothing yet, and Services whose selector chooses
    /// no workload of these files, in the order of files and lines. Nothing is wrong with it: what was so at the load before
    /// is not said again.
    pub fn skipped(&self) -> &[Problem] {
        &self.skipped
    }

    /// Whether all files could be parsed at once in this load or an earlier one. Until then batches are
    /// empty: part of a mesh without its policies would admit too much.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes the load apart: the batch, the problems, and what was skipped.
    pub fn into_parts(self) -> (Batch, Vec<Problem>, Vec<Problem>) {
        (self.batch, self.problems, self.skipped)
    }
}

impl Loader {
    /// Makes a loader that knows of no resource yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            files: BTreeMap::new(),
            resources: BTreeMap::new(),
            named: BTreeSet::new(),
            skipped: Vec::new(),
            complete: false,
        }
    }

    /// Takes all files as they are now, and says what changed.
    ///
    /// What a file that is no longer among them held is removed; a file that is there and has become
    /// empty is refused, since what is being written looks like that. Of two objects with one name the
    /// first counts, by path and then by line; of two files with one path the last.
    pub fn load(&mut self, files: Vec<(PathBuf, Vec<u8>)>) -> Loaded {
        let files: BTreeMap<PathBuf, Vec<u8>> = files.into_iter().collect();
        let mut load = Load {
            settings: &self.settings,
            before: last_good(&self.files),
            taken: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            skipped: BTreeMap::new(),
        };
        let mut fresh = BTreeMap::new();
        let mut refused = Vec::new();
        for (path, content) in &files {
            // What is written in place is empty for a while, and stays so on a full disk.
            let had = self.files.get(path).is_some_and(|had| !had.is_empty());
            let read = load.file(path, content, had);
            match read {
                Ok(entries) => {
                    fresh.insert(path.clone(), entries);
                }
                Err(invalid) => {
                    load.problems.push(Problem::new(path, invalid));
                    refused.push(path);
                }
            }
        }
        self.complete |= refused.is_empty();
        if !self.complete {
            let (problems, skipped) = (load.problems, load.skipped);
            return self.finish(Batch::default(), problems, load.warnings, skipped);
        }
        // A refused file keeps what it had, except what moved to a file that was read.
        for path in refused {
            let mut kept = self.files.get(path).cloned().unwrap_or_default();
            kept.retain(|entry| !load.taken.contains_key(&entry.key));
            fresh.insert(path.clone(), kept);
        }
        let (mut problems, mut skipped) = (load.problems, load.skipped);
        let mut warnings = load.warnings;
        let mut found = Found {
            problems: &mut problems,
            warnings: &mut warnings,
            skipped: &mut skipped,
        };
        let resources = join(&fresh, &self.settings, &mut found);
        let before = mem::replace(&mut self.resources, resources);
        self.files = fresh;
        let batch = difference(&before, &self.resources);
        self.finish(batch, problems, warnings, skipped)
    }

    fn finish(
        &mut self,
        batch: Batch,
        mut problems: Vec<Problem>,
        mut warnings: Vec<Problem>,
        skipped: Skipped,
    ) -> Loaded {
        // Those that may be why a workload is missed first, for there is room for so many.
        let (hides, rest): (Vec<&Problem>, Vec<_>) = skipped
            .values()
            .partition(|problem| problem.hides_workload());
        self.skipped = (hides.into_iter().chain(rest).take(MAX_WARNINGS).cloned()).collect();
        let now = skipped.keys().cloned().collect();
        let named = mem::replace(&mut self.named, now);
        let news = skipped
            .into_iter()
            .filter(|(what, _)| !named.contains(what));
        let mut skipped: Vec<Problem> = news.map(|(_, first)| first).collect();
        for list in [&mut problems, &mut warnings, &mut skipped] {
            list.sort_by(|a, b| (a.file(), a.line()).cmp(&(b.file(), b.line())));
        }
        Loaded {
            batch,
            problems,
            warnings,
            skipped,
            complete: self.complete,
        }
    }

    /// The file and line that a resource in effect comes from, for saying where a
    /// [`Verdict`](crate::model::Verdict) belongs.
    pub fn origin(&self, resource: &ResourceName) -> Option<(&Path, u32)> {
        let resource = self.resources.get(resource)?;
        Some((&resource.file, resource.line))
    }

    /// Says where in the files a refusal by whoever applied the batch belongs; `None` for a verdict that
    /// accepts, or on a resource that no file makes.
    pub fn refusal(&self, verdict: &Verdict) -> Option<Problem> {
        let reason = verdict.result().err()?.reason();
        let (file, line) = self.origin(verdict.resource())?;
        let field = verdict.resource().to_string();
        let invalid = Invalid::new(line, field, reason.to_owned());
        Some(Problem::new(file, invalid))
    }

    /// What the last load skipped, 100 at most: what [`Loaded::skipped`] says, and what was so before.
    pub fn skipped(&self) -> &[Problem] {
        &self.skipped
    }

    /// The WorkloadGroups in effect: templates for the entries of hosts that register, which say nothing of
    /// the mesh by themselves.
    pub fn workload_groups(&self) -> impl Iterator<Item = &WorkloadGroup> {
        let entries = self.files.values().flatten();
        entries.filter_map(|entry| match &entry.object {
            Object::Manifest(object) => match &**object {
                manifest::Object::WorkloadGroup(group) => Some(group),
                _ => None,
            },
            Object::Ztunnel(_) => None,
        })
    }

    /// All resources in effect, by kind and name.
    pub fn resources(&self) -> impl Iterator<Item = &Update> {
        self.resources.values().map(|resource| &resource.update)
    }
}

fn last_good(files: &BTreeMap<PathBuf, Vec<Entry>>) -> BTreeMap<&str, &Object> {
    files
        .values()
        .flatten()
        .filter(|entry| !entry.stands)
        .map(|entry| (&*entry.key, &entry.object))
        .collect()
}

/// What was skipped, by what is said of it, and where that is first.
type Skipped = BTreeMap<String, Problem>;

/// One load, while its files are read.
struct Load<'a> {
    settings: &'a Settings,
    before: BTreeMap<&'a str, &'a Object>,
    /// Where each object of this load is.
    taken: BTreeMap<String, (PathBuf, u32)>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    skipped: Skipped,
}

/// How many fields that were passed over are named.
const MAX_WARNINGS: usize = 100;

/// An object of a file that is still being read.
struct Pending {
    key: String,
    line: u32,
    read: Result<Object, Invalid>,
    /// What stands for it when it is refused and has no last good version, and what that does.
    closed: Option<(Object, &'static str)>,
    passed_over: Vec<Invalid>,
}

impl Load<'_> {
    /// Reads a file; fails when nothing of it can be used.
    ///
    /// One that `had` objects may not be empty: removing it is how to say that they are gone.
    fn file(&mut self, path: &Path, content: &[u8], had: bool) -> Result<Vec<Entry>, Invalid> {
        let text = std::str::from_utf8(content).map_err(|error| {
            let before = &content[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            Invalid::new(line, String::new(), "expected UTF-8".into())
        })?;
        // All of the file has to be read before any of it counts.
        let mut pending = Vec::new();
        let mut is_empty = true;
        let mut left = self.settings.max_nodes();
        for (before, document) in tree::documents(text) {
            for node in tree::parse(before, document, left)? {
                is_empty = false;
                left = left.saturating_sub(node.count());
                self.document(path, &node, &mut pending)?;
            }
        }
        if is_empty && had {
            let message = "the file is empty and held objects before; expected them, or no file";
            return Err(Invalid::new(1, String::new(), message.into()));
        }
        let mut entries = Vec::new();
        for object in pending {
            self.take(path, object, &mut entries);
        }
        Ok(entries)
    }

    /// Reads the objects of a document; fails when it cannot be told what they are.
    fn document(
        &mut self,
        path: &Path,
        document: &tree::Node,
        pending: &mut Vec<Pending>,
    ) -> Result<(), Invalid> {
        let at = Cursor::root(document);
        let is_local = |(key, _): &(&Arc<str>, _)| ztunnel::KEYS.contains(&&***key);
        if at.entries()?.iter().any(is_local) {
            for item in ztunnel::items(&at)? {
                let expected = "expected a mapping with the name of the object";
                let read = item.read(self.settings);
                pending.push(Pending {
                    key: item.key().ok_or_else(|| item.at.invalid(expected))?,
                    line: item.at.line(),
                    read: read.map(|object| Object::Ztunnel(Arc::new(object))),
                    closed: None,
                    passed_over: Vec::new(),
                });
            }
            return Ok(());
        }
        let mut found = Vec::new();
        manifest::find(&at, &mut found)?;
        for found in found {
            match found {
                manifest::Found::Skipped(what, hides_workload) => {
                    skip(&mut self.skipped, path, what, hides_workload);
                }
                manifest::Found::Item(item) => {
                    let wrap = |object| Object::Manifest(Arc::new(object));
                    let read = item.read(self.settings).map(wrap);
                    let closed = match &read {
                        Ok(_) => None,
                        Err(invalid) => {
                            let why = Problem::new(path, invalid.clone()).to_string();
                            let closed = item.closed(self.settings, &why).map(wrap);
                            closed.map(|object| (object, item.until_right()))
                        }
                    };
                    pending.push(Pending {
                        key: item.key().to_owned(),
                        line: item.at.line(),
                        read,
                        closed,
                        passed_over: item.passed_over(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes an object, or what stands for it when it is refused: its last good version, else
    /// something narrower.
    fn take(&mut self, path: &Path, object: Pending, entries: &mut Vec<Entry>) {
        let Pending {
            key,
            line,
            read,
            closed,
            passed_over,
        } = object;
        if let Some((file, first)) = self.taken.get(&key) {
            let message = format!("{key} is already defined at {}:{first}", file.display());
            let invalid = Invalid::new(line, "metadata.name".into(), message);
            self.problems.push(Problem::new(path, invalid));
            return;
        }
        self.taken.insert(key.clone(), (path.to_owned(), line));
        let room = MAX_WARNINGS - self.warnings.len();
        let warnings = passed_over.into_iter().take(room);
        self.warnings
            .extend(warnings.map(|invalid| Problem::new(path, invalid)));
        let mut stands = false;
        let object = match read {
            Ok(object) => Some(object),
            Err(mut invalid) => {
                let last = self.before.get(&*key).map(|object| (*object).clone());
                let object = last.or_else(|| {
                    let (closed, until_right) = closed?;
                    stands = true;
                    let message = &mut invalid.message;
                    message.push_str(&format!("; until it is right, {until_right}"));
                    Some(closed)
                });
                self.problems
                    .push(Problem::new(path, invalid).closed(stands));
                object
            }
        };
        if let Some(object) = object {
            entries.push(Entry {
                key,
                line,
                object,
                stands,
            });
        }
    }
}

/// What is said of the files.
struct Found<'a> {
    problems: &'a mut Vec<Problem>,
    warnings: &'a mut Vec<Problem>,
    skipped: &'a mut Skipped,
}

fn skip(skipped: &mut Skipped, file: &Path, what: Invalid, hides_workload: bool) {
    let said = format!("{}: {}", what.field, what.message);
    let entry = skipped.entry(said);
    entry.or_insert_with(|| Problem::new(file, what).hiding_workload(hides_workload));
}

/// Makes resources of all objects. Of several with one name the first counts, by file and line.
fn join(
    files: &BTreeMap<PathBuf, Vec<Entry>>,
    settings: &Settings,
    found: &mut Found<'_>,
) -> BTreeMap<ResourceName, Resource> {
    let mut objects = Vec::new();
    let mut origins = Vec::new();
    let mut workloads: Vec<(Arc<Path>, u32, Workload)> = Vec::new();
    let mut services: Vec<(&Service, &[ztunnel::Endpoint])> = Vec::new();
    let mut made: Vec<(Arc<Path>, u32, Update)> = Vec::new();
    for (path, entries) in files {
        let file: Arc<Path> = path.as_path().into();
        for entry in entries {
            let origin = (Arc::clone(&file), entry.line);
            match &entry.object {
                Object::Manifest(object) => {
                    objects.push(&**object);
                    origins.push(origin);
                }
                Object::Ztunnel(object) => match &**object {
                    ztunnel::Object::Workload(workload) => {
                        workloads.push((origin.0, origin.1, (**workload).clone()));
                    }
                    ztunnel::Object::Service(service, endpoints) => {
                        services.push((service, endpoints));
                        made.push((origin.0, origin.1, (**service).clone().into()));
                    }
                    ztunnel::Object::Policy(policy) => {
                        made.push((origin.0, origin.1, policy.clone().into()));
                    }
                },
            }
        }
    }
    made.extend(with_endpoints(workloads, &services));
    let assembled = assemble::assemble(&objects, settings);
    for (object, field, message) in assembled.dangling {
        let (file, line) = &origins[object];
        let invalid = Invalid::new(*line, field, message);
        found.problems.push(Problem::new(file, invalid));
    }
    let room = MAX_WARNINGS.saturating_sub(found.warnings.len());
    for (object, message) in assembled.binds_nobody.into_iter().take(room) {
        let (file, line) = &origins[object];
        let invalid = Invalid::new(*line, "spec.selector".into(), message.to_owned());
        found.warnings.push(Problem::new(file, invalid));
    }
    for (object, field, message) in assembled.idle {
        let (file, line) = &origins[object];
        let invalid = Invalid::new(*line, field.to_owned(), message);
        let is_pod = matches!(objects[object], manifest::Object::Pod(_));
        skip(found.skipped, file, invalid, is_pod);
    }
    for (object, update) in assembled.resources {
        let (file, line) = &origins[object];
        made.push((Arc::clone(file), *line, update));
    }
    let mut resources: BTreeMap<ResourceName, Resource> = BTreeMap::new();
    made.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    for (file, line, update) in made {
        let name = update.name();
        match resources.get(&name) {
            Some(first) => {
                let message = format!(
                    "{name} is already made by {}:{}",
                    first.file.display(),
                    first.line
                );
                let invalid = Invalid::new(line, "metadata.name".into(), message);
                found.problems.push(Problem::new(&file, invalid));
            }
            None => {
                resources.insert(name, Resource { update, file, line });
            }
        }
    }
    resources
}

/// Adds to workloads what services say of their endpoints.
fn with_endpoints(
    mut workloads: Vec<(Arc<Path>, u32, Workload)>,
    services: &[(&Service, &[ztunnel::Endpoint])],
) -> impl Iterator<Item = (Arc<Path>, u32, Update)> {
    let by_uid: BTreeMap<String, usize> = workloads
        .iter()
        .enumerate()
        .map(|(at, (_, _, workload))| (workload.uid().to_owned(), at))
        .collect();
    for (service, endpoints) in services {
        for endpoint in *endpoints {
            // An endpoint may come before its workload: nothing to say of it yet.
            if let Some(at) = by_uid.get(&*endpoint.workload_uid) {
                let workload = &mut workloads[*at].2;
                *workload = ztunnel::join(workload.clone(), service.name(), endpoint);
            }
        }
    }
    workloads
        .into_iter()
        .map(|(file, line, workload)| (file, line, workload.into()))
}

fn difference(
    before: &BTreeMap<ResourceName, Resource>,
    now: &BTreeMap<ResourceName, Resource>,
) -> Batch {
    let updates = now
        .iter()
        .filter(|(name, resource)| {
            before
                .get(name)
                .is_none_or(|before| before.update != resource.update)
        })
        .map(|(_, resource)| resource.update.clone())
        .collect();
    let removed = before
        .keys()
        .filter(|name| !now.contains_key(name))
        .cloned()
        .collect();
    Batch::new(updates, removed)
}
