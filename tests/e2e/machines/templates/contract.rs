//! What two clones of one template must not have in common, and what none of them may know.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Home, Ran};

/// Lines of a name and a value.
fn table(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Names of the rows whose values are the same in both.
fn alike(
    one: &BTreeMap<String, String>,
    two: &BTreeMap<String, String>,
    rows: &[&str],
) -> Vec<String> {
    let of_row = |name: &&String| rows.iter().any(|row| name.ends_with(row));
    one.keys()
        .filter(of_row)
        .filter(|name| one.get(*name) == two.get(*name))
        .cloned()
        .collect()
}

/// How many rows of this kind there are.
fn count(table: &BTreeMap<String, String>, row: &str) -> usize {
    table.keys().filter(|name| name.ends_with(row)).count()
}

/// Rows that a machine has once for each of its two processors, since the kernel keeps a pool of random numbers for each.
const OF_EACH_PROCESSOR: [&str; 7] = [
    ".getrandom",
    ".urandom",
    ".uuid",
    ".canary",
    ".stack",
    ".vdso",
    ".mapping",
];
/// Rows that its first process has too, which takes what is left of numbers drawn before the freeze.
const OF_THE_FIRST_PROCESS: [&str; 4] =
    ["first.canary", "first.stack", "first.vdso", "first.mapping"];
/// Rows that a machine has once.
const OF_THE_MACHINE: [&str; 3] = ["boot-id", "hostname", "ports"];

/// How far the same sequence number of two machines may lie apart for want of precision: 50 ms, in units of 64 ns.
const SEQUENCE_PRECISION: i32 = 781_250;

fn sequences_agree(one: &BTreeMap<String, String>, two: &BTreeMap<String, String>) -> bool {
    ["sequence-2001", "sequence-2002"].iter().all(|row| {
        let of = |table: &BTreeMap<String, String>| -> u32 {
            table[*row].parse().expect("a sequence number is a number")
        };
        // Sequence numbers go round, so their difference does.
        let apart = of(one).wrapping_sub(of(two)).cast_signed();
        apart.unsigned_abs() < SEQUENCE_PRECISION.unsigned_abs()
    })
}

// Where a processor has RDRAND, a kernel that is not told of the cloning differs too as soon as it reseeds, a second after its boot:
// only a host on which a clone draws sooner shows the difference.
#[test]
fn two_clones_of_one_template_have_no_random_value_and_no_name_in_common() {
    let home = Home::new();
    home.prepare(&["--cpus", "2"]).succeeded();
    let clone = || {
        let ran = home.run(&["--cpus", "2"], &["probe", "identity"]);
        table(&ran.is_clone().stdout())
    };

    let (one, two) = (clone(), clone());

    let counts =
        |rows: &[&str]| -> Vec<usize> { rows.iter().map(|row| count(&one, row)).collect() };
    assert_eq!(counts(&OF_EACH_PROCESSOR), [2, 2, 2, 3, 3, 3, 3], "{one:?}");
    assert_eq!(counts(&OF_THE_FIRST_PROCESS), [1; 4], "{one:?}");
    assert_eq!(counts(&OF_THE_MACHINE), [1; 3], "{one:?}");
    assert_eq!(
        alike(&one, &two, &OF_EACH_PROCESSOR),
        [""; 0],
        "alike in two clones: {one:?} {two:?}"
    );
    assert_eq!(
        alike(&one, &two, &OF_THE_MACHINE),
        [""; 0],
        "alike in two clones: {one:?} {two:?}"
    );
    assert!(
        !sequences_agree(&one, &two),
        "TCP sequence numbers: {one:?} {two:?}"
    );
    let drawn = [
        "cpu0.getrandom",
        "cpu1.getrandom",
        "cpu0.urandom",
        "cpu1.urandom",
    ];
    let mut values: Vec<_> = drawn
        .iter()
        .flat_map(|row| [&one[*row], &two[*row]])
        .collect();
    values.sort_unstable();
    values.dedup();
    assert_eq!(
        values.len(),
        8,
        "no processor repeats what another drew: {one:?} {two:?}"
    );
}

#[test]
fn two_clones_of_one_template_have_no_hardware_address_in_common() {
    let home = Home::prepared();
    let script = "cd /sys/class/net && for i in *; do [ $i = lo ] || cat $i/address; done";
    let clone = || home.run(&[], &["sh", "-c", script]).is_clone().stdout();

    let (one, two) = (clone(), clone());

    let common: Vec<&str> = one
        .lines()
        .filter(|address| two.contains(*address))
        .collect();
    assert_eq!(common, [""; 0]);
}

#[test]
fn a_clone_has_the_hosts_time_and_a_clock_that_goes_on() {
    let home = Home::new();
    home.prepare(&["--cpus", "2"]).succeeded();
    let frozen = fs::metadata(home.template().join("state"))
        .and_then(|state| state.modified())
        .unwrap();
    // Older than the two seconds by which a clock may be wrong, on the fastest host too.
    home.run(&["--cpus", "2"], &["sleep", "2"]).is_clone();

    let before = SystemTime::now();
    let ran = home.run(&["--cpus", "2"], &["probe", "clocks"]);
    let after = SystemTime::now();

    let clocks = table(&ran.is_clone().stdout());
    let number = |name: &str| -> u64 { clocks[name].parse().expect("a clock says a number") };
    assert!(
        before.duration_since(frozen).unwrap() > Duration::from_secs(2),
        "the template is old enough"
    );
    let realtime = UNIX_EPOCH + Duration::from_millis(number("realtime-ms"));
    let slack = Duration::from_millis(10);
    assert!(
        realtime + slack >= before,
        "its clock is the template's, or late: {clocks:?}"
    );
    assert!(realtime <= after + slack, "its clock is fast: {clocks:?}");
    assert_eq!(number("backwards"), 0, "{clocks:?}");
    let (monotonic, wall) = (number("monotonic-passed-ms"), number("realtime-passed-ms"));
    assert!(
        monotonic.abs_diff(wall) <= 50,
        "both clocks go equally fast: {clocks:?}"
    );
    assert!(
        (300..20_000).contains(&monotonic),
        "a timer fires when it should: {clocks:?}"
    );
}

// What the kernel had set before the freeze goes off before what is set here, or never, and then this does not either.
#[test]
fn timers_on_each_processor_of_an_old_templates_clone_go_off_when_they_should() {
    let home = Home::new();
    home.prepare(&["--cpus", "2"]).succeeded();
    // By now the processor's clock has passed all deadlines of the template.
    home.run(&["--cpus", "2"], &["sleep", "2"]).is_clone();
    let script = "for cpu in 0 1; do
            from=$(cut -d' ' -f1 /proc/uptime); taskset -c $cpu sleep 0.5
            echo cpu$cpu $from $(cut -d' ' -f1 /proc/uptime)
        done
        timeout 1 sleep 1000; echo ended $?";

    let ran = home.run(&["--cpus", "2"], &["sh", "-c", script]);

    let said = table(&ran.is_clone().stdout());
    assert_eq!(said["ended"], "143", "{said:?}");
    let slept_ms = |cpu: &str| -> u64 {
        let (from, to) = said[cpu].split_once(' ').expect("two times");
        let ms = |seconds: &str| -> u64 {
            // Seconds with two digits after the point (proc(5)).
            let hundredths = seconds.replace('.', "");
            hundredths.parse::<u64>().expect("a time is a number") * 10
        };
        ms(to) - ms(from)
    };
    let slept = ["cpu0", "cpu1"].map(slept_ms);
    assert!(
        slept.iter().all(|ms| (500..20_000).contains(ms)),
        "slept for {slept:?} ms: {said:?}"
    );
}

// The kernel's timer for the cgroup's quota is the template's: it was made with the container.
#[test]
fn half_a_processor_gives_about_half_the_time_in_a_clone() {
    let home = Home::new();
    home.prepare(&["--cpus", "0.5"]).succeeded();
    let script = "probe spin 3000 1 >/dev/null; cat /sys/fs/cgroup/cpu.stat";

    let ran = home.run(&["--cpus", "0.5"], &["sh", "-c", script]);

    let said = table(&ran.is_clone().stdout());
    let number = |name: &str| -> f64 { said[name].parse().expect("cpu.stat has numbers") };
    // A period is 100 ms in which somebody wanted to run: spinning never lets one pass.
    let share = number("usage_usec") / (number("nr_periods") * 100_000.0);
    assert!((0.3..=0.7).contains(&share), "a share of {share}: {said:?}");
    assert!(number("nr_throttled") >= 10.0, "{said:?}");
}

#[test]
#[ignore = "needs a complete KVM, which gives each guest a TSC of its own: the lab runs it"]
fn the_monotonic_clock_of_a_clone_goes_on_where_it_was_frozen() {
    let home = Home::prepared();
    let uptime_ms = || -> u64 {
        let clocks = table(&home.run(&[], &["probe", "clocks"]).is_clone().stdout());
        clocks["uptime-ms"].parse().expect("an uptime is a number")
    };

    let young = uptime_ms();
    // The template gets older by the time that this clone takes.
    home.run(&[], &["sleep", "4"]).is_clone().says("");
    let old = uptime_ms();

    assert!(
        old < young + 2000,
        "after {young} ms one clone says so, a later one {old} ms"
    );
}

#[test]
fn a_template_holds_nothing_of_a_run_before_it() {
    let home = Home::new();
    let secret = format!("token-{}-of-a-run", "7f3a91");
    let typed = format!("typed-{}-into-a-run", "52c8de");
    let of_host = format!("environment-{}-of-the-host", "e04b17");
    let script = "cat > /secret; echo $TOKEN > /dev/shm/secret; cat /secret";
    let run = || {
        let invocation = home
            .run_invocation(
                &["-i", "-e", "TOKEN", "-e", "HOSTS=none"],
                &["sh", "-c", script],
            )
            .env("TOKEN", &secret)
            .env("OF_HOST", &of_host)
            .input(typed.clone());
        Ran::of(invocation.run())
    };
    run().booted().says(&typed);
    home.prepare_invocation(&[])
        .env("OF_HOST", &of_host)
        .run()
        .succeeded();
    run().is_clone().says(&typed);

    // Perhaps the first run has left a base before.
    home.prepare(&["--base"]).succeeded();
    let templates: Vec<_> = home
        .ids()
        .iter()
        .map(|id| home.directory().join(id))
        .collect();
    let files = templates
        .iter()
        .flat_map(|template| ["state", "memory"].map(|name| template.join(name)));
    let found: Vec<String> = files
        .map(|file| fs::read(file).unwrap())
        .flat_map(|bytes| {
            let needles = [&secret, &typed, &of_host];
            needles
                .into_iter()
                .filter(|needle| contains(&bytes, needle.as_bytes()))
                .cloned()
                .collect::<Vec<_>>()
        })
        .collect();

    assert_eq!(found, [""; 0]);
    assert_eq!(templates.len(), 2);
    for template in templates {
        let memory = fs::read(template.join("memory")).unwrap();
        assert!(
            contains(&memory, b"Linux version"),
            "what is in memory is found this way"
        );
    }
}

/// Whether the needle is there; skips what cannot be its beginning, since memory is long and mostly zero.
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let pages = haystack.chunks(4096).enumerate();
    pages
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .any(|(number, _)| {
            let start = number * 4096;
            let end = (start + 4096 + needle.len()).min(haystack.len());
            haystack[start..end]
                .windows(needle.len())
                .any(|window| window == needle)
        })
}
