//! What is typed about what machines use, and may use.

use clap::Args;

use crate::limits::{ByteSize, CpuQuota, MemoryLimit};
use crate::policy::RestartPolicy;
use crate::workload::container::CpuSet;
use crate::workload::limits::{LimitChange, SwapLimit};

/// Arguments of `vmm stats`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The figures are the container's, as the guest's kernel counts them; the machine around it has more.
CPU % is of one processor, over the last second; with --no-stream, and at first, over 40 ms. A
machine that is paused, or does not answer within 2 s, has --. NET I/O is what its guest counts on its network interface: 0B without one.

Templates: {{.Container}} {{.ID}} {{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.NetIO}}
  {{.BlockIO}} {{.PIDs}} {{json .}}

Examples:
  vmm stats
  vmm stats --no-stream web shop
  vmm stats --no-stream --format 'table {{.Name}}\\t{{.CPUPerc}}\\t{{.MemUsage}}'
  vmm stats --format json web")]
pub struct StatsArgs {
    /// Show machines that do not run, too
    #[arg(short, long)]
    pub all: bool,
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print it: table, json for an object a line, a template, or a table of one, see below
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names, ids or beginnings of ids; all machines that run if there are none
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,
}

/// Arguments of `vmm top`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The guest answers, not a program `ps`: there need be none in the image. Options are -e, -A, -f, -ef,
ax, aux, and -o with fields:
  pid ppid user uid gid comm args cmd stat s time etime stime c pcpu pmem rss vsz tty nice pri
  nlwp thcount

Ids are those that the machine's own commands see, so `vmm exec MACHINE kill PID` takes them. Users
are numbers, but for root. Times are in UTC. At most 1024 processes are listed, and of each 1 KiB of
arguments.

Examples:
  vmm top web
  vmm top web aux
  vmm top web -eo pid,rss,args")]
pub struct TopArgs {
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Options as of ps(1), see below
    #[arg(
        value_name = "OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub options: Vec<String>,
}

/// Arguments of `vmm update`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
What a machine that runs may use changes at once, up to the processors and the memory that it was
started with. A machine that is kept, see `vmm create`, has the limits at its next start, too, with
the processors and the memory for them.

Examples:
  vmm update --memory 64m web
  vmm update --cpus 0.5 --pids-limit 100 web shop")]
pub struct UpdateArgs {
    /// Processor time that the machine may use, in processors, as in 1.5; 0.01 to 32
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["cpu_quota", "cpu_period"])]
    pub cpus: Option<CpuQuota>,
    /// Processor time in each period, in microseconds of one processor; -1 for no limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// The period, 1000 to 1000000 microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    pub cpu_period: Option<u64>,
    /// Weight among the cgroups of the machine
    #[arg(short = 'c', long, value_name = "NUMBER")]
    pub cpu_shares: Option<u64>,
    /// Processors of the machine to run on, as in 0-1,3
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<CpuSet>,
    /// Memory that the workload may use, in units of b, k, m or g; at least 6m
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<MemoryLimit>,
    /// Memory that the guest's kernel leaves to the workload when it is short of it
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<ByteSize>,
    /// Memory and swap together, of which a guest has none; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_swap: Option<SwapLimit>,
    /// The most processes and threads at a time; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// When to start the machine again: no, on-failure[:NUMBER], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<RestartPolicy>,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

impl UpdateArgs {
    /// What is to change.
    #[must_use]
    pub fn change(&self) -> LimitChange {
        LimitChange {
            cpus: self.cpus,
            cpu_quota_us: self.cpu_quota,
            cpu_period_us: self.cpu_period,
            cpu_shares: self.cpu_shares,
            cpuset: self.cpuset_cpus.clone(),
            memory: self.memory,
            memory_reservation: self.memory_reservation,
            memory_swap: self.memory_swap,
            pids: self.pids_limit,
        }
    }
}
