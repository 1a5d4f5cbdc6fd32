package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"causeway/protocol"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"causeway-agent": main})
}

// Bad input ends in one line and exit status 1, or 2 for the command line.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			tok, err := protocol.NewToken(protocol.Pin{1}, "127.0.0.1:1")
			if err != nil {
				return err
			}
			e.Setenv("TOKEN", tok.Text())
			return nil
		},
		Condition: func(c string) (bool, error) { return c == "root" && os.Geteuid() == 0, nil },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// oneline FILE: the file holds exactly one line.
			"oneline": func(ts *testscript.TestScript, neg bool, args []string) {
				n := 0
				for _, c := range ts.ReadFile(args[0]) {
					if c == '\n' {
						n++
					}
				}
				if n != 1 {
					ts.Fatalf("%s holds %d lines", args[0], n)
				}
			},
		},
	})
}
