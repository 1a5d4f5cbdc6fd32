package strictyaml

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type sample struct {
	List []string `yaml:"list"`
	Port uint16   `yaml:"port"`
	Deep struct {
		Name *string `yaml:"name"`
	} `yaml:"deep"`
}

func TestDecode(t *testing.T) {
	var s sample
	f, err := Decode("a.yaml", []byte("port: 3\nlist: [x, y]\n"), &s, "")
	require.NoError(t, err)
	require.Equal(t, []string{"x", "y"}, s.List)
	require.Equal(t, "a.yaml:2:11", f.At("$.list[1]"))
	require.Equal(t, "a.yaml", f.At("$.none"))
	require.Equal(t, "a.yaml", f.At("not a path"))
}

func TestDecodeErrors(t *testing.T) {
	for in, want := range map[string]string{
		"list: []\nlits: []\n":     `config a.yaml:2:1: unknown field "lits"; known keys: list, port`,
		"port: big\n":              "config a.yaml:1:7: ",
		"deep: [1]\n":              "config a.yaml:1:7: ",
		"list: [\n":                "config a.yaml:1:7: ",
		"list: !0000 00000\n":      "config a.yaml: a value is malformed",
		"a: 1\n---\n\tb: 2\n":      "config a.yaml:",
		strings.Repeat("#", 1<<21): "larger than 1 MiB",
	} {
		_, err := Decode("a.yaml", []byte(in), new(sample), "list, port")
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n")
	}
}

// FuzzDecode: a file is written by an administrator or by a tool gone wrong;
// whatever it holds, the answer is a value or one line.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("list: [a]\nport: 1\ndeep: {name: x}\n"))
	f.Add([]byte("routes: !0000000000000000000000 00000000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Decode("a.yaml", b, new(sample), "list"); err != nil && strings.Contains(err.Error(), "\n") {
			t.Fatalf("more than a line: %q", err)
		}
	})
}
