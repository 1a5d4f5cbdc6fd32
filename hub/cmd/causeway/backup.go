package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	agecrypt "filippo.io/age"
	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/exitstatus"
)

// minPassphrase is how many characters a new backup's passphrase has at least. A restore
// asks nothing of that: backups of before have shorter ones.
const minPassphrase = 12

// maxSecretFile bounds files of passphrases.
const maxSecretFile = 4 << 10

func (c *cli) backup() *cobra.Command {
	var recipients []string
	var passphrase string
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write an encrypted backup of the hub's state",
		Long: `Write an encrypted backup of the hub's state and hub key to FILE, which must not
exist, in age's format. It is encrypted to --recipient (an age public key,
age1…), or with the passphrase that is the first line of --passphrase-file, of 12
characters at least.

The cluster key is not in it: keep a copy of cluster.key from the hub's data
directory apart from backups. Both together make the hub anew on any host:
'causeway-hub restore FILE --cluster-key KEYFILE'.`,
		Args: frame.Exactly("FILE"),
	}
	cmd.Flags().StringArrayVar(&recipients, "recipient", nil, "age public `KEY` that can open it; may be repeated")
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "`FILE` whose first line is the passphrase; - for standard input")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		to, err := exitstatus.Until(ctx, func() ([]agecrypt.Recipient, error) { return c.recipients(recipients, passphrase) })
		if err != nil {
			return err
		}
		return frame.WriteNew(args[0], func(w io.Writer) error {
			enc, err := agecrypt.Encrypt(w, to...)
			if err != nil {
				return fmt.Errorf("encrypt: %w", err)
			}
			if err := hub.Backup(ctx, enc); err != nil {
				return err
			}
			return enc.Close()
		})
	})
}

func (c *cli) restore() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Say how a hub is restored", Args: frame.Exactly("FILE"),
		RunE: func(*cobra.Command, []string) error {
			return frame.Fail(errors.New("a running hub cannot be replaced beneath itself: stop it, move its data directory away, and run 'causeway-hub restore FILE --cluster-key KEYFILE' on its host or another"))
		},
	}
}

func (c *cli) recipients(keys []string, file string) (out []agecrypt.Recipient, err error) {
	if (len(keys) == 0) == (file == "") {
		return nil, frame.Usagef("give either --recipient or --passphrase-file: a backup is always encrypted")
	}
	for _, k := range keys {
		r, err := agecrypt.ParseX25519Recipient(k)
		if err != nil {
			return nil, frame.Usagef("--recipient %.80q is no age public key (age1…)", k)
		}
		out = append(out, r)
	}
	if file != "" {
		p, err := c.firstLine(file)
		if err != nil {
			return nil, err
		}
		if utf8.RuneCountInString(strings.TrimSpace(p)) < minPassphrase {
			return nil, frame.Usagef("--passphrase-file: the first line of %s is shorter than %d characters: whoever has the backup could try them all; take five or six random words, or --recipient", file, minPassphrase)
		}
		r, err := agecrypt.NewScryptRecipient(p)
		if err != nil {
			return nil, frame.Usagef("--passphrase-file: the first line of %s holds no passphrase", file)
		}
		out = []agecrypt.Recipient{r}
	}
	return out, nil
}

// firstLine reads a secret from the first line of a file, or of standard input.
func (c *cli) firstLine(file string) (string, error) {
	in := c.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", frame.Usagef("--passphrase-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxSecretFile))
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimRight(line, "\r")), err
}
