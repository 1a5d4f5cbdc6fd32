// Command causeway is the admin CLI of a Causeway hub. It speaks the admin API
// on the hub's unix socket and holds no state of its own. Each noun of the
// command line has a file of its name; what they have in common is in
// internal/frame: connections, tables, JSON, watching, completion.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
