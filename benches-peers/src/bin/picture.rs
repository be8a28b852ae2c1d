//! Writes the tables and the picture of `docs/performance.md` from the results of the benchmarks in this folder:
//! `picture [TARGET]`. `TARGET` is the target folder of the benchmarks, by default that of cargo.
//!
//! Every figure is a median that criterion has measured, divided by the median of a reference from the same run. Results
//! of different runs are rejected.

use std::{
    env,
    error::Error,
    fmt::{self, Write as _},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::Value;

/// The folder of this package.
const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// The benchmark that all ratios refer to.
const REFERENCE: (&str, &str) = (OWN, "same_user");

/// The start that all ratios of starts refer to.
const START: (&str, &str) = ("start", OWN);

/// Flipswitch's own interface.
const OWN: &str = "flipswitch";

/// Results that lie further apart are from different runs.
const RUN: Duration = Duration::from_secs(30 * 60);

/// The benchmarks of reads, with the crate whose version is shown, and the name.
const SDKS: [Sdk; 8] = [
    Sdk { id: OWN, package: "flipswitch", name: "Flipswitch" },
    Sdk { id: "flipswitch_evaluation_context", package: "flipswitch", name: "Flipswitch, `EvaluationContext`" },
    Sdk { id: "flipswitch_openfeature", package: "flipswitch", name: "Flipswitch, OpenFeature's trait" },
    Sdk { id: "unleash", package: "unleash-yggdrasil", name: "Unleash's engine" },
    Sdk { id: "launchdarkly", package: "launchdarkly-server-sdk", name: "LaunchDarkly" },
    Sdk { id: "flagd", package: "open-feature-flagd", name: "flagd in process" },
    Sdk { id: "flagd_cached", package: "open-feature-flagd", name: "flagd, with its cache" },
    Sdk { id: "ofrep", package: "open-feature-ofrep", name: "OFREP without a cache" },
];

/// The situations, with their headings in the table and in the picture.
const SITUATIONS: [Situation; 10] = [
    Situation { id: "from_flags", column: "existing `Flags`", title: "An existing `Flags`" },
    Situation { id: "same_user", column: "same user", title: "The same user and context each time" },
    Situation { id: "few_users", column: "16 users", title: "16 users in turn, existing contexts" },
    Situation { id: "many_users", column: "1 000 users", title: "1 000 users in turn, existing contexts" },
    Situation { id: "built", column: "built", title: "1 000 users in turn, context built for each read" },
    Situation {
        id: "same_user_two_threads",
        column: "same, 2 threads",
        title: "The same user each time, on two threads",
    },
    Situation {
        id: "built_two_threads",
        column: "built, 2 threads",
        title: "Context built for each read, on two threads",
    },
    Situation { id: "new_user", column: "new user", title: "A user never seen before" },
    Situation { id: "no_rule", column: "no rule", title: "The same user each time, a flag without a rule" },
    Situation {
        id: "new_user_no_rule",
        column: "new, no rule",
        title: "A user never seen before, flags without rules",
    },
];

/// The SDKs that evaluate rules in the process, and need no request for a new user.
const IN_PROCESS: [&str; 3] = ["unleash", "launchdarkly", "flagd"];

/// The SDKs whose starts are measured, with the source of their flags.
const STARTS: [(&str, &str); 5] = [
    (OWN, "one request"),
    ("ofrep", "one request"),
    ("unleash", "a registration and one request"),
    ("launchdarkly", "a stream"),
    ("flagd", "a file"),
];

struct Sdk {
    id: &'static str,
    package: &'static str,
    name: &'static str,
}

struct Situation {
    id: &'static str,
    column: &'static str,
    title: &'static str,
}

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let target = match env::args_os().nth(1).or_else(|| env::var_os("CARGO_TARGET_DIR")) {
        Some(target) => target.into(),
        None => Path::new(PACKAGE).join("target"),
    };
    let docs = Path::new(PACKAGE).join("../docs");
    let page = docs.join("performance.md");
    let mut text = fs::read_to_string(&page)?;

    let mut results = Results::new(&target);
    let reference = results.median(REFERENCE)?.ok_or("there are no results of read_a_bool")?;
    let versions = versions()?;
    replace(&mut text, "reads", &reads(&mut results, reference, &versions)?)?;
    replace(&mut text, "visits", &visits(&mut results)?)?;
    let picture = picture(&mut results, reference)?;
    results.check()?;

    let mut results = Results::new(&target);
    replace(&mut text, "starts", &starts(&mut results)?)?;
    results.check()?;

    let svg = docs.join("performance.svg");
    fs::write(&svg, picture)?;
    fs::write(&page, text)?;
    let median = Median(reference);
    writeln!(io::stdout(), "Wrote the tables of performance.md, and performance.svg. The reference takes {median}.")?;
    Ok(())
}

/// The results of one run.
struct Results {
    criterion: PathBuf,
    /// When the first and the last result that was used were written.
    written: Option<(SystemTime, SystemTime)>,
}

impl Results {
    fn new(target: &Path) -> Self {
        Self { criterion: target.join("criterion"), written: None }
    }

    /// Returns the median of a benchmark in nanoseconds, if there is such a benchmark.
    fn median(&mut self, (group, benchmark): (&str, &str)) -> Outcome<Option<f64>> {
        let file = self.criterion.join(group).join(benchmark).join("new/estimates.json");
        if !file.exists() {
            return Ok(None);
        }
        let at = fs::metadata(&file)?.modified()?;
        let (first, last) = self.written.unwrap_or((at, at));
        self.written = Some((first.min(at), last.max(at)));
        let estimates: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        let median = estimates["median"]["point_estimate"].as_f64();
        Ok(Some(median.ok_or_else(|| format!("{} has no median", file.display()))?))
    }

    /// Returns a median, or an error if there is no such benchmark.
    fn required(&mut self, group: &str, benchmark: &str) -> Outcome<f64> {
        Ok(self.median((group, benchmark))?.ok_or_else(|| format!("there is no result of {group}/{benchmark}"))?)
    }

    /// Checks that all results are from one run.
    fn check(&self) -> Outcome {
        let (first, last) = self.written.ok_or("there are no results")?;
        if last.duration_since(first)? > RUN {
            let problem = "the results are from different runs: remove this folder, and measure again";
            return Err(format!("{}: {problem}", self.criterion.display()).into());
        }
        Ok(())
    }
}

/// Returns the table of reads: SDKs by situations.
fn reads(results: &mut Results, reference: f64, versions: &Value) -> Outcome<String> {
    let mut table = row(["".into()].into_iter().chain(SITUATIONS.map(|situation| situation.column.to_owned())));
    table += &rule(1 + SITUATIONS.len());
    for sdk in SDKS {
        let version = versions[sdk.package].as_str().ok_or_else(|| format!("{} is not locked", sdk.package))?;
        let own = sdk.package == OWN;
        let name = if own { sdk.name.to_owned() } else { format!("{}, {version}", sdk.name) };
        let mut cells = vec![name];
        for situation in SITUATIONS {
            let median = results.median((sdk.id, situation.id))?;
            cells.push(median.map_or_else(String::new, |median| Ratio(median / reference).to_string()));
        }
        table += &row(cells);
    }
    Ok(table)
}

/// Returns the table of the cost of a new user, in reads.
fn visits(results: &mut Results) -> Outcome<String> {
    let mut own = |situation| results.required(OWN, situation);
    let (new, from_flags, built) = (own("new_user")?, own("from_flags")?, own("built")?);
    let mut table = row([
        "compared with",
        "reads of one `Flags`",
        "for each ms of network",
        "context built for each read",
        "for each ms of network",
    ]
    .map(str::to_owned));
    table += &rule(5);
    for id in IN_PROCESS {
        let mut peer = |situation| results.required(id, situation);
        let (peer_new, peer_same, peer_built) = (peer("new_user")?, peer("same_user")?, peer("built")?);
        let name = SDKS.iter().find(|sdk| sdk.id == id).map_or(id, |sdk| sdk.name);
        let mut cells = vec![name.to_owned()];
        for saved in [peer_same - from_flags, peer_built - built] {
            if saved > 0.0 {
                cells.push(Rounded((1.0 + (new - peer_new) / saved).ceil()).to_string());
                cells.push(format!("+ {}", Rounded((1e6 / saved).ceil())));
            } else {
                cells.extend(["never".to_owned(), String::new()]);
            }
        }
        table += &row(cells);
    }
    Ok(table)
}

/// Returns the table of starts.
fn starts(results: &mut Results) -> Outcome<String> {
    let reference = results.required(START.0, START.1)?;
    let mut table = row(["", "receives flags by", "first value"].map(str::to_owned)) + &rule(3);
    for (id, source) in STARTS {
        let ratio = Ratio(results.required(START.0, id)? / reference).to_string();
        let name = match id {
            "unleash" => "Unleash's SDK",
            _ => SDKS.iter().find(|sdk| sdk.id == id).map_or(id, |sdk| sdk.name),
        };
        table += &row([name.to_owned(), source.to_owned(), ratio]);
    }
    Ok(table)
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<_> = cells.into_iter().collect();
    format!("| {} |\n", cells.join(" | "))
}

fn rule(columns: usize) -> String {
    format!("|---{}|\n", "|--:".repeat(columns - 1))
}

/// Replaces a table between its two comments.
fn replace(text: &mut String, name: &str, table: &str) -> Outcome {
    let (begin, end) = (format!("<!-- table: {name} -->\n"), "<!-- end -->");
    let missing = || format!("performance.md has no comments that mark the table {name:?}");
    let from = text.find(&begin).ok_or_else(missing)? + begin.len();
    let to = from + text[from..].find(end).ok_or_else(missing)?;
    text.replace_range(from..to, table);
    Ok(())
}

/// Returns the locked version of each package. If a package has several versions, it returns one of them.
fn versions() -> Outcome<Value> {
    let lock = fs::read_to_string(Path::new(PACKAGE).join("Cargo.lock"))?;
    let quoted = |line: &str, field| Some(line.strip_prefix(field)?.trim_matches('"').to_owned());
    let mut versions = Value::default();
    let mut name = None;
    for line in lock.lines() {
        if let Some(found) = quoted(line, "name = ") {
            name = Some(found);
        } else if let (Some(version), Some(name)) = (quoted(line, "version = "), name.take()) {
            versions[name] = version.into();
        }
    }
    Ok(versions)
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 230.0;
/// The width of the figures to the right of the bars.
const RIGHT: f64 = 70.0;
const BAR: f64 = 14.0;
const LINE: f64 = 20.0;
const HEADING: f64 = 34.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 30.0;

const STYLE: &str = "
    .back { fill: #ffffff }
    text { fill: #1f2328; stroke: #ffffff; stroke-width: 3px; paint-order: stroke; font: 13px system-ui, sans-serif }
    .title { font-size: 17px; font-weight: 600 } .situation { font-weight: 600 } .scale { font-size: 11px }
    .grid { stroke: #d1d9e0 } .one { stroke: #59636e } .own { fill: #0b7a75 } .peer { fill: #8c95a3 }
    @media (prefers-color-scheme: dark) {
      .back { fill: #0d1117 } text { fill: #e6edf3; stroke: #0d1117 }
      .grid { stroke: #30363d } .one { stroke: #9198a1 } .own { fill: #2bb8ad } .peer { fill: #6e7785 }
    }
  ";

/// Returns the picture: for each situation a bar for each SDK, on a logarithmic scale.
fn picture(results: &mut Results, reference: f64) -> Outcome<String> {
    let mut groups = Vec::new();
    for situation in SITUATIONS {
        let mut bars = Vec::new();
        for sdk in SDKS {
            if let Some(median) = results.median((sdk.id, situation.id))? {
                bars.push((sdk, median / reference));
            }
        }
        groups.push((situation, bars));
    }
    let ratios = || groups.iter().flat_map(|(_, bars)| bars).map(|(_, ratio)| ratio.log10());
    let lowest = ratios().fold(0.0, f64::min).floor();
    let highest = ratios().fold(1.0, f64::max).ceil();
    let x = |log: f64| LEFT + (WIDTH - LEFT - RIGHT) * (log - lowest) / (highest - lowest);
    let lines: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let height =
        TOP + HEADING * f64::from(u32::try_from(groups.len())?) + LINE * f64::from(u32::try_from(lines)?) + BOTTOM;

    let title = "Time of one read of a boolean flag, by SDK and situation";
    let scale =
        "Ratios to Flipswitch with the same user each time, in the same run. Logarithmic scale. Shorter is faster";
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}. \
         {scale}. The table on the same page has the same figures.\">"
    )?;
    writeln!(svg, "  <title>{title}</title>\n  <style>{STYLE}</style>")?;
    writeln!(svg, "  <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>")?;
    writeln!(svg, "  <text class=\"title\" x=\"12\" y=\"26\">{title}</text>")?;
    writeln!(svg, "  <text class=\"scale\" x=\"12\" y=\"46\">{scale}</text>")?;
    let mut log = lowest;
    while log <= highest {
        let (class, bottom) = (if log == 0.0 { "one" } else { "grid" }, height - BOTTOM + 6.0);
        writeln!(svg, "  <path class=\"{class}\" d=\"M{0:.1} {TOP}V{bottom}\"/>", x(log))?;
        for y in [TOP - 6.0, bottom + 14.0] {
            let label = if log < 0.0 { 10_f64.powf(log).to_string() } else { Rounded(10_f64.powf(log)).to_string() };
            writeln!(
                svg,
                "  <text class=\"scale\" x=\"{:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>",
                x(log)
            )?;
        }
        log += 1.0;
    }
    let mut y = TOP;
    for (situation, bars) in &groups {
        y += HEADING;
        let words = situation.title.replace('`', "");
        writeln!(svg, "  <text class=\"situation\" x=\"12\" y=\"{}\">{words}</text>", y - 9.0)?;
        for (sdk, ratio) in bars {
            let class = if sdk.package == OWN { "own" } else { "peer" };
            let (end, base) = (x(ratio.log10()), y + 11.5);
            let name = sdk.name.replace('`', "");
            writeln!(svg, "  <text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0)?;
            writeln!(
                svg,
                "  <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>",
                end - LEFT
            )?;
            writeln!(svg, "  <text x=\"{:.1}\" y=\"{base}\">{}</text>", end + 6.0, Ratio(*ratio))?;
            y += LINE;
        }
    }
    svg += "</svg>\n";
    Ok(svg)
}

/// A ratio with two significant digits.
struct Ratio(f64);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ratio if ratio < 0.095 => write!(f, "{ratio:.3}"),
            ratio if ratio < 0.95 => write!(f, "{ratio:.2}"),
            ratio if ratio < 9.5 => write!(f, "{ratio:.1}"),
            ratio => Rounded(ratio).fmt(f),
        }
    }
}

/// A whole number with two significant digits, and a space between thousands.
struct Rounded(f64);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10_f64.powf((self.0.max(1.0).log10().floor() - 1.0).max(0.0));
        let digits = format!("{:.0}", (self.0 / unit).round() * unit);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index) % 3 == 0 {
                f.write_char('\u{202f}')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// A median in nanoseconds.
struct Median(f64);

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} ns", self.0)
    }
}
