# config.json -> the C header that hack/floor.c is compiled with.

def string: if . == null then "NULL" else @json end;  # the bundle is ASCII: JSON strings are C strings
def list: map(string + ", ") | join("");
def define(name): "#define \(name) \(.)";

{"pid": "PID", "network": "NET", "ipc": "IPC", "uts": "UTS", "mount": "NS", "cgroup": "CGROUP", "user": "USER",
 "time": "TIME"} as $clone
| {"ro": "MS_RDONLY", "nosuid": "MS_NOSUID", "nodev": "MS_NODEV", "noexec": "MS_NOEXEC", "relatime": "MS_RELATIME",
   "strictatime": "MS_STRICTATIME", "noatime": "MS_NOATIME"} as $flags
| def mount:
    (.options // []) as $options
    | [
        (if .type == "cgroup" then "cgroup2" else .type end | string),
        (.source | string),
        (.destination | string),
        ([$options[] | $flags[.] // empty] | if . == [] then "0" else join(" | ") end),
        ([$options[] | select($flags[.] == null)] | if . == [] then null else join(",") end | string)
      ]
    | "{ " + join(", ") + " }, ";
  ([.linux.namespaces[].type | "CLONE_NEW" + $clone[.]] | join(" | ") | "(\(.))" | define("NAMESPACES")),
  ([.mounts[] | mount] | join("") | define("MOUNTS")),
  (.linux.maskedPaths // [] | list | define("MASKED")),
  (.linux.readonlyPaths // [] | list | define("READONLY")),
  (.process.args | list | define("ARGS")),
  (.process.env | list | define("ENV")),
  (if .root.readonly then "MS_RDONLY" else "0" end | define("ROOT_FLAGS"))
