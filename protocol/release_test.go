package protocol

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const goldenRelease = `{
  "version": "1.3.0",
  "minimum": "1.2.0-0",
  "files": [
    {
      "name": "causeway-agent_1.3.0_amd64.bin",
      "program": "causeway-agent",
      "arch": "amd64",
      "size": 16715902,
      "sha256": "d1e47c3ead097841790c833e16a9b13e3c2ce8cb69b0bb2aa55281838bb40513"
    }
  ]
}
`

func TestParseRelease(t *testing.T) {
	r, err := ParseRelease([]byte(goldenRelease))
	require.NoError(t, err)
	require.Equal(t, "1.3.0", r.Version)
	f, ok := r.Find("causeway-agent", "amd64")
	require.True(t, ok)
	require.Equal(t, int64(16715902), f.Size)
	_, ok = r.Find("causeway-agent", "arm64")
	require.False(t, ok)
	for what, change := range map[string][2]string{
		"no version":         {`"1.3.0",`, `"1.3",`},
		"v":                  {`"version": "1`, `"version": "v1`},
		"minimum above":      {"1.2.0-0", "1.3.1"},
		"path":               {"causeway-agent_1.3.0", "../causeway-agent"},
		"hidden":             {`"causeway-agent_1.3.0`, `".causeway-agent`},
		"too large":          {"16715902", "1671590200"},
		"no size":            {"16715902", "-1"},
		"short checksum":     {"d1e47c3e", ""},
		"something after it": {"\n}\n", "\n} {}"},
		"no JSON":            {"{", "<"},
	} {
		b := strings.Replace(goldenRelease, change[0], change[1], 1)
		require.NotEqual(t, goldenRelease, b, what)
		_, err := ParseRelease([]byte(b))
		require.Error(t, err, what)
	}
	_, err = ParseRelease([]byte(goldenRelease + strings.Repeat(" ", MaxRelease)))
	require.ErrorContains(t, err, "longer than")
}

func TestCompareVersions(t *testing.T) {
	in := []string{"0.0.0-0", "0.0.0", "0.0.0+1.g12", "0.9.1", "1.2.3-rc.1", "1.2.3", "1.2.10", "1.10.0"}
	for i, a := range in {
		require.True(t, ValidVersion(a), a)
		for j, b := range in {
			require.Equal(t, i < j, CompareVersions(a, b) < 0, "%s %s", a, b)
			require.Equal(t, i == j, CompareVersions(a, b) == 0, "%s %s", a, b)
		}
	}
	for _, v := range []string{"", "dev", "1.2", "v1.2.3", "1.2.3 ", "1.2.3/../..", "1.2.3-" + strings.Repeat("a", 64)} {
		require.False(t, ValidVersion(v), v)
	}
}

// FuzzParseRelease: a manifest's bytes come from a hub that may be anybody's, before
// its signature is known to be good to whoever only shows it.
func FuzzParseRelease(f *testing.F) {
	f.Add([]byte(goldenRelease))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRelease(b)
		if err != nil {
			return
		}
		out, err := json.Marshal(r)
		require.NoError(t, err)
		again, err := ParseRelease(out)
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}
