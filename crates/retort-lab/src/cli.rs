//! The command line of `retort`.

use crate::bench::BenchArgs;
use crate::data::{DataArgs, DataCommand};
use crate::docs::DocsArgs;
use crate::export::ExportArgs;
use crate::features::Features;
use crate::figures::Embedding;
use crate::import::ImportArgs;
use crate::list::{What, text};
use crate::manifest::{Loaded, collection, collection_at};
use crate::plan::{NUMERICS, Plan, RunSpec, Selection};
use crate::record::Record;
use crate::runner::{Layout, Outcome, Resources, Runner};
use crate::splits::{DataSets, ProfileData};
use crate::table::{Records, Table};
use crate::tune::Search;
use crate::{Error, Result};
use clap::{Args, Parser, Subcommand};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Knowledge-distillation benchmarks from manifests.
#[derive(Debug, Parser)]
#[command(name = "retort", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plan a table, run what is missing, print it.
    Reproduce(ReproduceArgs),
    /// Choose the weights of a table's rows on held-out training images, and write them down for `reproduce`.
    Tune(TuneArgs),
    /// Run one run of a manifest's plan: the unit that a cluster's scheduler starts.
    Train(TrainArgs),
    /// Run a record's specification again and compare the two records line by line.
    Rerun(RerunArgs),
    /// How long a step takes on this machine, and how much memory: training, distillation, one loss.
    Bench(BenchArgs),
    /// What exists: methods, models, data sets, tables.
    List {
        #[arg(value_enum)]
        what: What,
        /// One JSON array instead of lines.
        #[arg(long)]
        json: bool,
        /// Folder of manifests.
        #[arg(long, env = "RETORT_EXPERIMENTS", default_value = "experiments", hide_env_values = true)]
        experiments: PathBuf,
        /// Folder of trained networks.
        #[arg(long, env = "RETORT_MODELS", default_value = "models", hide_env_values = true)]
        models: PathBuf,
    },
    /// Turn weights of another code base into a folder that `load_pretrained` reads.
    ImportWeights(ImportArgs),
    /// Turn the weights of a finished run into such a folder.
    ExportWeights(ExportArgs),
    /// Data sets: list them, verify the files, look at the images.
    #[command(subcommand)]
    Data(DataCommand),
    /// Bring the pages of the methods up to date, or check that they are.
    Docs(DocsArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// Folder for records, weights, checkpoints and tables.
    #[arg(long, env = "RETORT_RUNS", default_value = "runs", hide_env_values = true)]
    out: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Runs side by side; the cores are divided among them [default: the number of cores].
    #[arg(long)]
    jobs: Option<usize>,
    /// Threads over all runs; they change no number [default: RAYON_NUM_THREADS or the number of cores].
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Debug, Args)]
struct ReproduceArgs {
    /// Name of a manifest, for example `table1`.
    table: String,
    /// Scale: `quick`, `cpu`, `paper` ...
    #[arg(long)]
    profile: Option<String>,
    /// Only these methods (and the baseline).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Number of seeds instead of the profile's.
    #[arg(long)]
    seeds: Option<u64>,
    /// Print the runs and their ids, run nothing.
    #[arg(long)]
    plan: bool,
    /// Run nothing: render the table from the records in this folder.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// How figures bring features into the plane, where the profile draws any.
    #[arg(long, value_enum, default_value_t = Embedding::Pca)]
    embedding: Embedding,
    /// Folder of manifests.
    #[arg(long, env = "RETORT_EXPERIMENTS", default_value = "experiments", hide_env_values = true)]
    experiments: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct TuneArgs {
    /// Name of a manifest, for example `table3`.
    table: String,
    /// Scale: `quick`, `cpu`, `paper` ...
    #[arg(long)]
    profile: Option<String>,
    /// Folder of manifests.
    #[arg(long, env = "RETORT_EXPERIMENTS", default_value = "experiments", hide_env_values = true)]
    experiments: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// A manifest file; of a report, the run may belong to any of its parts.
    manifest: PathBuf,
    /// Id of the run, as `reproduce --plan` prints it.
    #[arg(long)]
    run: String,
    /// Scale.
    #[arg(long)]
    profile: Option<String>,
    /// Number of seeds instead of the profile's.
    #[arg(long)]
    seeds: Option<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct RerunArgs {
    /// A record, `ID.jsonl`.
    record: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Cli {
    /// Carries out the command; tables and lists go to `out`, progress to standard error.
    ///
    /// # Errors
    ///
    /// See [`Error::exit_code`].
    pub fn execute(&self, out: &mut dyn Write, stop: &AtomicBool) -> Result<()> {
        match &self.command {
            Command::Reproduce(args) => reproduce(args, out, stop),
            Command::Tune(args) => tune(args, out, stop),
            Command::Train(args) => train(args, out, stop),
            Command::Rerun(args) => rerun(args, out, stop),
            Command::Bench(args) => print(out, &args.execute(stop)?),
            Command::List { what, json, experiments, models } => print(out, &text(*what, experiments, models, *json)?),
            Command::ImportWeights(args) => print(out, &args.execute()?),
            Command::ExportWeights(args) => print(out, &args.execute()?),
            Command::Data(command) => print(out, &command.execute()?),
            Command::Docs(args) => print(out, &args.execute()?),
        }
    }
}

fn reproduce(args: &ReproduceArgs, out: &mut dyn Write, stop: &AtomicBool) -> Result<()> {
    let (title, parts) = collection(&args.experiments, &args.table)?;
    let known = || parts.iter().flat_map(Loaded::method_ids);
    if let Some(id) = args.only.iter().find(|id| !known().any(|method| method == *id)) {
        let known: Vec<&str> = known().collect();
        let hint = crate::source::suggestion(id, known.iter().copied());
        return Err(Error::Request(format!("unknown method `{id}`{hint}")));
    }
    let mut tables = Vec::new();
    let mut failed = Vec::new();
    let wanted =
        |loaded: &&Loaded| args.only.is_empty() || loaded.method_ids().any(|id| args.only.iter().any(|o| o == id));
    for loaded in with_profile(&parts, args.profile.as_deref()).into_iter().filter(wanted) {
        match reproduce_one(args, loaded, out, stop) {
            Ok(table) => tables.extend(table),
            // The other tables of the report are worth having.
            Err(Error::Failed(message)) if title.is_some() => failed.push(format!("{}: {message}", loaded.name)),
            Err(error) => return Err(error),
        }
    }
    if let (Some(title), Some((plan, _))) = (title, tables.first()) {
        let folder = Layout::new(&args.common.out).table(&args.table, &plan.profile);
        let tables: Vec<&Table> = tables.iter().map(|(_, table)| table).collect();
        Table::save_all(&title, &tables, &folder)?;
        print(out, &format!("\nAll tables in one report: {}\n", from_here(&folder).display()))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(failed.join("\n"))) }
}

/// One table; nothing where only the plan or the records are shown.
fn reproduce_one(
    args: &ReproduceArgs,
    loaded: &Loaded,
    out: &mut dyn Write,
    stop: &AtomicBool,
) -> Result<Option<(Plan, Table)>> {
    let only = args.only.iter().filter(|id| loaded.method_ids().any(|known| known == *id));
    let selection = Selection { only: only.cloned().collect(), seeds: args.seeds };
    let (plan, data) = plan(loaded, args.profile.as_deref(), &selection, &args.common)?;
    if args.plan {
        print(out, &describe(&plan))?;
        return Ok(None);
    }
    if let Some(folder) = &args.from {
        if !folder.is_dir() {
            return Err(Error::file(folder, "not a folder of records"));
        }
        print(out, &Table::new(loaded, &plan, &records(folder, &plan)?)?.terminal())?;
        return Ok(None);
    }
    let rows = data.all();
    let runner = args.common.runner(&rows, stop)?;
    let Outcome { records, failures } = runner.run(&plan)?;
    let table = Table::new(loaded, &plan, &records)?;
    let folder = runner.layout.table(&plan.table, &plan.profile);
    print(out, &table.terminal())?;
    table.save(&folder)?;
    print(out, &format!("\nThe same as Markdown, CSV and LaTeX: {}\n", from_here(&folder).display()))?;
    if loaded.profile(Some(&plan.profile))?.1.features {
        let features = Features::new(&runner.layout, &data.students);
        let reports = features.reports(&plan, &records)?;
        crate::features::save(&plan, &records, &reports, &folder)?;
        let figures = {
            let baseline = loaded.manifest.baseline.as_ref().as_str();
            crate::figures::save((&plan, baseline), &records, &reports, &features, args.embedding, &folder)?
        };
        let text = "Distances and bounds of the features: features.md and features.csv beside them";
        print(out, &format!("{text}; {} figures in figures/\n", figures.len()))?;
    }
    if failures.is_empty() {
        return Ok(Some((plan, table)));
    }
    let lines: Vec<String> = failures.iter().map(|(id, reason)| format!("  {id}: {reason}")).collect();
    Err(Error::Failed(format!("{} run(s) failed:\n{}", failures.len(), lines.join("\n"))))
}

fn tune(args: &TuneArgs, out: &mut dyn Write, stop: &AtomicBool) -> Result<()> {
    let loaded = Loaded::table(&args.experiments, &args.table)?;
    let (name, profile) = loaded.profile(args.profile.as_deref())?;
    let data = ProfileData::load(profile, &args.common.data.sources()?)?;
    let search = Search::new(&loaded, name, &data)?;
    let rows = search.data().all();
    let runner = args.common.runner(&rows, stop)?;
    let Outcome { records, failures } = runner.run(search.plan())?;
    let (path, text) = search.choose(&loaded, &records, &failures)?;
    retort_nn::write_atomically(&path, text.as_bytes())?;
    print(out, &format!("{text}\nwritten to {}\n", from_here(&path).display()))
}

fn train(args: &TrainArgs, out: &mut dyn Write, stop: &AtomicBool) -> Result<()> {
    let (_, parts) = collection_at(&args.manifest)?;
    let selection = Selection { only: vec![], seeds: args.seeds };
    let (mut known, mut profiles) = (Vec::new(), BTreeSet::new());
    for loaded in with_profile(&parts, args.profile.as_deref()) {
        let (plan, data) = plan(loaded, args.profile.as_deref(), &selection, &args.common)?;
        let runs = plan.by_id();
        if let Some(spec) = runs.get(&args.run) {
            let record = args.common.runner(&data.all(), stop)?.one(spec)?;
            return print(out, &format!("{}\n", result_line(&record)));
        }
        profiles.insert(format!("`{}`", plan.profile));
        known.extend(runs.into_keys());
    }
    let hint = crate::source::suggestion(&args.run, known.iter().map(String::as_str));
    let profiles: Vec<String> = profiles.into_iter().collect();
    Err(Error::Request(format!("profile {} has no run `{}`{hint}", profiles.join(", "), args.run)))
}

/// The parts of a report that have this profile; all of them where none has it, and the first one says so.
fn with_profile<'a>(parts: &'a [Loaded], profile: Option<&str>) -> Vec<&'a Loaded> {
    let has = |loaded: &&Loaded| profile.is_none_or(|name| loaded.manifest.profiles.contains_key(name));
    let found: Vec<&Loaded> = parts.iter().filter(has).collect();
    if found.is_empty() { parts.iter().collect() } else { found }
}

fn rerun(args: &RerunArgs, out: &mut dyn Write, stop: &AtomicBool) -> Result<()> {
    let old = Record::load(&args.record)?;
    let rows = DataSets::of(&old.spec, &args.common.data.sources()?).map_err(|e| Error::file(&args.record, e))?;
    if old.spec.numerics != NUMERICS {
        let message = format!("made with numerics {}, this program computes with {NUMERICS}", old.spec.numerics);
        return Err(Error::file(&args.record, message));
    }
    // A folder of its own: what is compared must have been computed here and now.
    let mut runner = args.common.runner(&rows, stop)?;
    let source = runner.layout.clone();
    runner.layout = Layout::new(&args.common.out.join("rerun"));
    runner.layout.forget(&old.id)?;
    runner.layout.forget_teacher_outputs()?;
    for teacher in old.spec.with_teachers().into_iter().filter(|spec| spec.id() != old.id) {
        runner.layout.borrow(&source, &teacher.id())?;
    }
    let new = runner.one(&old.spec)?;
    let (a, b) = (old.reproducible_lines(), new.reproducible_lines());
    if let Some(line) = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i)) {
        let show = |lines: &[String]| lines.get(line).cloned().unwrap_or_else(|| "nothing".into());
        return Err(Error::Failed(format!("the records differ in line {}:\n  {}\n  {}", line + 1, show(&a), show(&b))));
    }
    print(
        out,
        &format!(
            "{} agrees with {} in every bit\n",
            Record::path(&runner.layout.records(), &new.id).display(),
            args.record.display()
        ),
    )
}

fn plan(loaded: &Loaded, profile: Option<&str>, selection: &Selection, common: &Common) -> Result<(Plan, ProfileData)> {
    let (name, profile) = loaded.profile(profile)?;
    let data = ProfileData::load(profile, &common.data.sources()?)?;
    Ok((Plan::new(loaded, name, &data, selection)?, data))
}

fn records(folder: &Path, plan: &Plan) -> Result<Records> {
    let paths = plan.by_id().into_keys().map(|id| (Record::path(folder, &id), id)).filter(|(path, _)| path.exists());
    paths.map(|(path, id)| Ok((id, Record::load(&path)?))).collect()
}

fn describe(plan: &Plan) -> String {
    let line = |id: String, spec: &RunSpec, what: &str| {
        format!("{id}  {:<12} {:>4} epochs  {what}\n", spec.model, spec.epochs)
    };
    let teachers = plan.teachers.iter().map(|run| line(run.spec.id(), &run.spec, &run.method));
    let students = plan.runs.iter().map(|run| {
        let teacher = run.spec.teacher.as_ref().map(|teacher| format!(", teacher {}", teacher.model));
        let what = format!("{}, seed {}{}", run.method, run.seed, teacher.unwrap_or_default());
        line(run.spec.id(), &run.spec, &what)
    });
    teachers.chain(students).collect()
}

fn result_line(record: &Record) -> String {
    serde_json::json!({ "id": record.id, "model": record.spec.model, "result": record.result }).to_string()
}

/// The path as the user would type it.
pub(crate) fn from_here(path: &Path) -> &Path {
    std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

fn print(out: &mut dyn Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).map_err(|e| Error::Failed(format!("cannot write the output: {e}")))
}

/// More threads than any machine has cores; a larger number is a slip that would only exhaust the system.
pub(crate) const MAX_THREADS: usize = 1024;

impl Common {
    fn runner<'a>(&self, data: &'a DataSets, stop: &'a AtomicBool) -> Result<Runner<'a>> {
        let mut resources = Resources::default();
        if let Some(threads) = self.threads {
            resources = Resources { jobs: threads, threads };
        }
        if let Some(jobs) = self.jobs {
            resources.jobs = jobs;
        }
        if !(1..=MAX_THREADS).contains(&resources.jobs) || !(1..=MAX_THREADS).contains(&resources.threads) {
            let Resources { jobs, threads } = resources;
            let message =
                format!("`--jobs` and `--threads` must be in 1 ..= {MAX_THREADS}, found {jobs} and {threads}");
            return Err(Error::Request(message));
        }
        Ok(Runner { layout: Layout::new(&self.out), data, resources, stop })
    }
}
