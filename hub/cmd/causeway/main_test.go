package main

import (
	"context"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"causeway/hub/api"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts' golden files")

// TestMain lets scripts run this program's main as 'causeway'.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"causeway": main})
}

// TestScripts runs testdata/script against a server that speaks the admin
// API's types with canned answers. The real hub is the end-to-end tests' part.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			// Not below e.WorkDir: a socket's path has at most 107 characters.
			dir, err := os.MkdirTemp("", "cw")
			if err != nil {
				return err
			}
			socket := filepath.Join(dir, "hub.sock")
			l, err := net.Listen("unix", socket)
			if err != nil {
				return err
			}
			srv := &http.Server{Handler: newFakeHub()}
			go srv.Serve(l)
			e.Defer(func() {
				srv.Shutdown(context.Background())
				os.RemoveAll(dir)
			})
			e.Setenv(envSocket, socket)
			e.Setenv("TZ", "UTC")
			return nil
		},
	})
}

// TestHelpOfEveryCommand keeps every command documented and every flag named.
func TestHelpOfEveryCommand(t *testing.T) {
	c := &cli{format: formatTable}
	n := 0
	for _, cmd := range flatten(c.root()) {
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		n++
	}
	require.Greater(t, n, 25)
}

// 'causeway explain KIND-file' knows every kind of documents.
func TestExplainKnowsEveryDocument(t *testing.T) {
	for kind, typ := range api.Documents {
		require.Equal(t, reflect.TypeOf(typ).String(), kinds[kind+"-file"].typ, kind)
	}
}
