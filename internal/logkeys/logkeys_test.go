package logkeys

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/LOGS.md has every key of hub and agent, with its one type, and no other.
func TestKeys(t *testing.T) {
	keys, wrong, err := Find("../..", "agent", "hub", "internal", "netns", "protocol", "tunnel")
	require.NoError(t, err)
	require.Empty(t, wrong, "write constant keys and messages")
	require.Greater(t, len(keys), 50, "the search finds next to nothing")
	b, err := os.ReadFile("../../docs/LOGS.md")
	require.NoError(t, err)
	listed := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\| ([^|]+) \\|$").FindAllStringSubmatch(string(b), -1) {
		require.NotContains(t, listed, m[1], "listed twice")
		listed[m[1]] = m[2]
	}
	always := []string{"level", "message", "time"}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		require.NotContains(t, always, k)
		require.Regexp(t, `^[a-z][a-z0-9_]*$`, k)
		l := slices.Sorted(maps.Keys(keys[k].Types))
		require.Len(t, l, 1, "key %s has values of more than one type, so it means more than one thing: %s", k, strings.Join(keys[k].At, ", "))
		require.Equal(t, l[0], listed[k], "docs/LOGS.md on %s, used at %s", k, strings.Join(keys[k].At, ", "))
	}
	for k := range listed {
		require.True(t, keys[k] != nil || slices.Contains(always, k), "no line has the key %s of docs/LOGS.md", k)
	}
	for _, main := range []string{"agent/cmd/causeway-agent/main.go", "hub/cmd/causeway-hub/main.go"} {
		b, err := os.ReadFile(filepath.Join("../..", main))
		require.NoError(t, err)
		require.Contains(t, string(b), `zerolog.ErrorFieldName = "err"`, main)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x.go"), []byte(`package x

func f() {
	log.Info().Str("one", a).Dur("two", d).Err(err).Msg("constant")
	ev := s.cfg.Log.With().Uint32("three", n).Logger()
	e := log.Debug()
	e = e.Int("four", 4)
	e.Msg("constant")
	e.Msg(variable)
	log.Warn().Str(key, a).Msg("constant")
	log.Error().Msgf("%d", n)
	log.Error().Fields(m).Msg("constant")
	flags.Int("five", 5)
	err.Error()
	err := ctx.Err()
	err.Str("six", "a")
	t.Error().Strs("seven", l).Str("one", b).Send()
}
`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x_test.go"), []byte("package x\n\nfunc g() { log.Info().Str(\"eight\", a).Send() }\n"), 0o600))
	keys, wrong, err := Find(dir, ".")
	require.NoError(t, err)
	require.Equal(t, []string{"err", "four", "one", "seven", "three", "two"}, slices.Sorted(maps.Keys(keys)))
	require.Len(t, keys["one"].At, 2)
	require.Equal(t, map[string]bool{"milliseconds": true}, keys["two"].Types)
	require.Len(t, wrong, 4, "%q", wrong)
	for i, want := range []string{":9:2: the message is no constant", ":10:2: the key is no constant", ":11:2: Msgf has no keys", ":12:2: Fields has no keys"} {
		require.Contains(t, wrong[i], want)
	}
}
