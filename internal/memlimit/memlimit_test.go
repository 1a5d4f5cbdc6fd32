package memlimit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Both versions, as hosts and containers show them.
func TestGroup(t *testing.T) {
	const v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	const v1 = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	for what, c := range map[string]struct {
		groups, mounts string
		files          map[string]string
		want           uint64 // 0: none
	}{
		"a service": {"0::/system.slice/causeway-hub.service\n", v2, map[string]string{"sys/fs/cgroup/system.slice/causeway-hub.service/memory.max": "134217728\n"}, 128 << 20},
		"its slice": {"0::/system.slice/causeway-hub.service\n", v2, map[string]string{"sys/fs/cgroup/system.slice/causeway-hub.service/memory.max": "max\n",
			"sys/fs/cgroup/system.slice/memory.max": "67108864\n"}, 64 << 20},
		"the smallest": {"0::/a/b\n", v2, map[string]string{"sys/fs/cgroup/a/b/memory.max": "300\n", "sys/fs/cgroup/a/memory.max": "200\n"}, 200},
		"a container":  {"0::/\n", v2, map[string]string{"sys/fs/cgroup/memory.max": "1000\n"}, 1000},
		"no limit":     {"0::/a\n", v2, map[string]string{"sys/fs/cgroup/a/memory.max": "max\n"}, 0},
		"version 1":    {"12:cpu,cpuacct:/x\n7:memory:/docker/abc\n", v1, map[string]string{"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "4096\n"}, 4096},
		"version 1, seen from inside": {"7:memory:/docker/abc\n", "32 23 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n"}, 4096},
		"version 1 without one": {"7:memory:/\n", v1, map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"nothing mounted":       {"0::/\n", "", nil, 0},
		"nonsense":              {"x\n0:\n", "x - cgroup2\n - cgroup2 a b\n", nil, 0},
	} {
		root := t.TempDir()
		put := func(name, text string) {
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
		}
		put("proc/self/cgroup", c.groups)
		put("proc/self/mountinfo", c.mounts)
		for name, text := range c.files {
			put(name, text)
		}
		got, ok := Group(root)
		require.Equal(t, c.want != 0, ok, what)
		if ok {
			require.Equal(t, c.want, got, what)
		}
	}
	_, ok := Group(t.TempDir())
	require.False(t, ok)
}
