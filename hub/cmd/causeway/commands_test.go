package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"causeway/hub/cmd/causeway/internal/frame"
)

// What the scripts have to show of each command.
const (
	printsText = "what it prints for a person"
	printsJSON = "what it prints with -o json"
	fails      = "an error of it"
)

// notShown are commands of which the scripts cannot show something, and why.
var notShown = map[string]map[string]string{
	"backup":          {printsText: "it writes a file and is silent", printsJSON: "it writes a file and is silent"},
	"restore":         {printsText: "it says what to do, which is an error", printsJSON: "it says what to do, which is an error"},
	"top":             {printsText: "it needs a terminal; see TestTopDrawsAndQuits", printsJSON: "it is a screen"},
	"diag capture":    {printsJSON: "it prints pcapng"},
	"context use":     {printsText: "it is silent", printsJSON: "it is silent"},
	"context import":  {printsJSON: "it prints one sentence"},
	"context remove":  {printsText: "it is silent", printsJSON: "it is silent"},
	"man":             {printsText: "it writes files", printsJSON: "it writes files"},
	"help":            {printsJSON: "it prints help"},
	"completion":      {printsText: "its help", printsJSON: "its help"},
	"completion bash": {printsJSON: "it prints a program", fails: "it has none"},
	"completion zsh":  {printsJSON: "it prints a program", fails: "it has none"},
	"completion fish": {printsJSON: "it prints a program", fails: "it has none"},

	"completion powershell": {printsJSON: "it prints a program", fails: "it has none"},
}

// TestScriptsShowEveryCommand holds the scripts to the tree of commands: each has a test that looks at what it prints for
// a person, as JSON, and when it fails.
func TestScriptsShowEveryCommand(t *testing.T) {
	root := (&cli{frame.New(nil, nil, nil)}).root()
	shown := map[string]map[string]bool{}
	scripts, err := filepath.Glob("testdata/script/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, scripts)
	for _, s := range scripts {
		b, err := os.ReadFile(s)
		require.NoError(t, err)
		readScript(root, string(b), shown)
	}
	n := 0
	for _, cmd := range flatten(root) {
		name := strings.TrimPrefix(cmd.CommandPath(), "causeway ")
		if cmd.HasSubCommands() && name != "completion" && cmd.RunE != nil && cmd.Flags().Lookup("since") == nil {
			continue // it only holds others
		}
		n++
		for _, what := range []string{printsText, printsJSON, fails} {
			why, excused := notShown[name][what]
			if !shown[name][what] && !excused {
				t.Errorf("causeway %s: no script looks at %s", name, what)
			}
			if shown[name][what] && excused {
				t.Errorf("causeway %s: notShown says %q, and a script looks at %s", name, why, what)
			}
		}
	}
	require.Greater(t, n, 60)
	for _, name := range slices.Sorted(maps.Keys(notShown)) {
		cmd, _, err := root.Find(strings.Fields(name))
		require.NoError(t, err, name)
		require.Equal(t, "causeway "+name, cmd.CommandPath(), "notShown has a command that there is not")
	}
}

// readScript notes what a script looks at of which command.
func readScript(root *cobra.Command, script string, shown map[string]map[string]bool) {
	script, _, _ = strings.Cut(script, "\n-- ")
	type call struct {
		name         string
		json, failed bool
	}
	var last call
	started := map[string]call{} // by the names that the script gives them
	note := func(what string) {
		if shown[last.name] == nil {
			shown[last.name] = map[string]bool{}
		}
		shown[last.name][what] = true
	}
	for line := range strings.Lines(script) {
		line, neg := strings.CutPrefix(strings.TrimSpace(line), "! ")
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		json := strings.Contains(line+" ", " -o json ")
		switch looks := words[0] == "stdout" || words[0] == "cmp" && words[1] == "stdout"; {
		case words[0] == "run":
			last = call{commandOf(root, words[1:]), json, neg}
		case words[0] == "exec":
			last = call{failed: neg}
			if words[1] == "causeway" {
				last.name, last.json = commandOf(root, words[2:]), json
			}
		case words[0] == "until":
			last = call{name: commandOf(root, words[2:]), json: json}
		case words[0] == "start":
			started[words[1]] = call{name: commandOf(root, words[2:]), json: json}
		case words[0] == "stop":
			last = started[words[1]]
			last.failed = neg
		case looks && neg:
		case looks && last.json:
			note(printsJSON)
		case looks:
			note(printsText)
		case words[0] == "stderr" && last.failed && !neg:
			note(fails)
		}
	}
}

// commandOf is the path of the command that the arguments call; empty: none of ours.
func commandOf(root *cobra.Command, args []string) string {
	cmd, _, err := root.Find(args)
	if err != nil || cmd == root {
		return ""
	}
	return strings.TrimPrefix(cmd.CommandPath(), "causeway ")
}
