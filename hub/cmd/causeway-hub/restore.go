package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub"
	"causeway/hub/backup"
	"causeway/internal/exitstatus"
)

// maxKeyFile bounds files of keys and passphrases.
const maxKeyFile = 64 << 10

func restoreCommand() *cobra.Command {
	var dir, clusterKey, passphrase, identity string
	var skip uint32
	var revoked []string
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make a data directory from a backup", Args: cobra.ExactArgs(1),
		Long: `Make a data directory, which must not exist or be empty, from a backup that
'causeway backup' wrote and a copy of the old hub's cluster.key. Run it as the
user that runs the hub; root becomes the owner of the directory. The old hub must not run again.

What happened after the backup is not in it. Open tokens are void, and hosts that
joined since have to join again: 'causeway status' names them once the nodes are
back. --skip-numbers is how many may have: their addresses are given to nobody.
What was revoked since is revoked again by the word of the first agent that knew,
which the cluster key has signed; name with --revoked what no such agent may be
left for.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := meantDir(c, dir); err != nil {
				return err
			}
			if (passphrase == "") == (identity == "") {
				return errors.New("give either --passphrase-file or --identity, as the backup was encrypted")
			}
			key, err := keyFile(c.Context(), "cluster-key", clusterKey)
			if err != nil {
				return err
			}
			var pass, ids string
			if passphrase != "" {
				text, err := keyFile(c.Context(), "passphrase-file", passphrase)
				if err != nil {
					return err
				}
				pass, _, _ = strings.Cut(text, "\n")
				if pass = strings.TrimRight(pass, "\r"); pass == "" {
					return fmt.Errorf("passphrase-file: the first line of %s is empty", passphrase)
				}
			} else if ids, err = keyFile(c.Context(), "identity", identity); err != nil {
				return err
			}
			f, err := exitstatus.Until(c.Context(), func() (*os.File, error) { return os.Open(args[0]) })
			if err != nil {
				return fmt.Errorf("backup: %w", err)
			}
			defer f.Close()
			if err := asOwner(dir); err != nil {
				return err
			}
			plain, err := backup.Decrypt(f, pass, ids)
			if err != nil {
				return err
			}
			r, err := hub.Restore(c.Context(), dir, plain, key, skip, revoked)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), `restored %s from the backup of %s: %d transactions, %d sites, %d nodes
netmap epoch %d, node numbers go on at %d, %d open tokens are void
start 'causeway-hub run' with the --public-host of this host; then 'causeway node list' and 'causeway status' show what agents know of the time since
`, dir, r.Made.Format(time.RFC3339), r.Transactions, r.Sites, r.Nodes, r.Epoch, r.NextNumber, r.Voided)
			return err
		},
	}
	fs := c.Flags()
	fs.StringVar(&dir, "data-dir", hub.DefaultDataDir, "directory to make")
	fs.StringVar(&clusterKey, "cluster-key", "", "copy of the old hub's cluster.key")
	fs.StringVar(&passphrase, "passphrase-file", "", "file whose first line is the backup's passphrase")
	fs.StringVar(&identity, "identity", "", "file with the age identity (AGE-SECRET-KEY-1…) that opens the backup")
	fs.StringSliceVar(&revoked, "revoked", nil, "NODE,… that were revoked since the backup")
	fs.Uint32Var(&skip, "skip-numbers", 1000, "node numbers that may have been given away since the backup")
	return c
}

func keyFile(ctx context.Context, flag, path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("--%s is missing", flag)
	}
	b, err := exitstatus.Until(ctx, func() ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxKeyFile))
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return string(b), nil
}
