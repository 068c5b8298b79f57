# Docker's profile format -> linux.seccomp of the runtime specification.
# Arguments: $machine (uname -m), $kernel (uname -r), $caps (the bundle's bounding set).

def version: [scan("[0-9]+") | tonumber] | .[0:2];

{"x86_64": ["SCMP_ARCH_X86_64", "amd64"], "aarch64": ["SCMP_ARCH_AARCH64", "arm64"]}[$machine] as [$arch, $go_arch]
| def wanted:
    (.includes // {}) as $in | (.excludes // {}) as $out
    | (($in.arches // []) | length == 0 or index($go_arch) != null)
      and (($out.arches // []) | index($go_arch) == null)
      and (($in.caps // []) - $caps | length == 0)
      and (($out.caps // []) - ($out.caps // [] | . - $caps) | length == 0)
      and ($in.minKernel == null or ($kernel | version) >= ($in.minKernel | version));
  {
    defaultAction,
    defaultErrnoRet,
    architectures: [.archMap[] | select(.architecture == $arch) | .architecture, .subArchitectures[]],
    syscalls: [
      .syscalls[] | select(wanted)
      | {names: (.names // [.name]), action, errnoRet, args}
      | with_entries(select(.value != null and .value != []))
    ]
  }
| with_entries(select(.value != null))
