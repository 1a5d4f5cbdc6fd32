package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func (c *cli) policyProve() *cobra.Command {
	q, length, file := api.ProveRequest{}, api.ProveDefaultTime, ""
	cmd := &cobra.Command{
		Use:   "prove",
		Short: "Try with packets all that policies close, and sign what came of it",
		Long: `Try with packets all that segments and policies close. For each pair of classes of
addresses an agent sends a SYN, a datagram and an echo request from an address of the
one, as its host or a pod would, and an agent on the other side says whether they came
out of its tunnel and past its wall. A second packet of each goes past the sender's own
wall, to try what is behind that. No pod gets any of them. Some of what is open is tried
as well: if none of that arrives, nothing is proven.

The result says of each pair between whom it was tried and what stopped the packet: the
sender's host, the sender's tunnel that has no such peer, or the receiver's wall. It is
signed by the cluster key, names the log as it was, and the log names it (causeway
audit). 'causeway policy verify' checks it without a hub.

Exit status is 1 when a packet arrived that should not, or a pair could not be tried: as
when no node of a class is connected, or its agent is of a version before.`,
		Example: `  causeway policy prove
  causeway policy prove --open --file 2026-11-policies.json`,
		Args: frame.Exactly(),
	}
	cmd.Flags().BoolVar(&q.Open, "open", false, "try all that is open too, not a sample")
	cmd.Flags().IntVar(&q.Pairs, "pairs", api.ProveDefaultPairs, fmt.Sprintf("try at most this many closed pairs, up to %d; others are left out, and nothing is proven then", api.ProveMaxPairs))
	flagenv.DurationVar(cmd.Flags(), &length, "time", length, "end after this long, at most 30m")
	cmd.Flags().StringVar(&file, "file", "", "write the signed result to `FILE`, which must not exist")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		q.Time = api.Duration(length)
		if err := q.Check(); err != nil {
			return frame.Usagef("%v", err)
		}
		signed, err := hub.ProvePolicies(ctx, q, func(done, of int) { c.Progress.Now("%d of %d pairs tried", done, of) })
		if err != nil {
			return err
		}
		p, err := signed.Open()
		if err != nil {
			return err
		}
		if file != "" {
			if err := frame.WriteNew(file, func(w io.Writer) error {
				e := json.NewEncoder(w)
				e.SetIndent("", " ")
				return e.Encode(signed)
			}); err != nil {
				return err
			}
		}
		return c.showProof(signed, p)
	})
}

func (c *cli) policyVerify() *cobra.Command {
	pin := ""
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a signed result of 'policy prove', without a hub",
		Long: `Check the signature of a result of 'policy prove', and that what it says follows from
what was seen. FILE is what --file or -o json wrote; - is standard input. --cluster says
whose it has to be: without it, hold the cluster that is printed against what you know.

Exit status is 1 when the result is not whole, or says that policies are not proven.`,
		Example: "  causeway policy verify 2026-11-policies.json",
		Args:    frame.Exactly("FILE"),
	}
	cmd.Flags().StringVar(&pin, "cluster", "", "SHA-256 of the cluster key, in hex, or its first 16 `DIGITS` at least")
	return frame.Local(cmd, func(args []string) error {
		if n := len(pin); n != 0 && (n < 16 || n > 64 || strings.Trim(pin, "0123456789abcdef") != "") {
			return frame.Usagef("--cluster is 16 to 64 digits 0-9a-f")
		}
		signed, err := readProof(args[0])
		if err != nil {
			return err
		}
		p, err := signed.Open()
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		if !strings.HasPrefix(p.Cluster, pin) {
			return fmt.Errorf("%s: it is of cluster %s", args[0], p.Cluster)
		}
		return c.showProof(signed, p)
	})
}

func readProof(path string) (out protocol.SignedPolicyProof, err error) {
	in := os.Stdin
	if path != "-" {
		if in, err = os.Open(path); err != nil {
			return out, err
		}
		defer in.Close()
	}
	b, err := io.ReadAll(io.LimitReader(in, 2*protocol.MaxPolicyProof))
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return out, fmt.Errorf("%s: it is no signed result of 'policy prove': %w", path, err)
	}
	return out, nil
}

// showProof prints a result, and fails unless all is proven.
func (c *cli) showProof(signed protocol.SignedPolicyProof, p protocol.PolicyProof) error {
	if err := c.Show(signed, []string{map[bool]string{true: "proven", false: "not proven"}[p.Summary.Proven]}, func(page *frame.Page) { proofPage(page, signed, p) }); err != nil {
		return err
	}
	if !p.Summary.Proven {
		return errors.New(protocol.Printable("not proven: " + strings.Join(p.Summary.Reasons, "; ")))
	}
	return nil
}

func proofPage(page *frame.Page, signed protocol.SignedPolicyProof, p protocol.PolicyProof) {
	s := p.Summary
	page.Facts("cluster", p.Cluster, "hub", protocol.Printable(fmt.Sprintf("%d, version %s", p.Hub, p.HubVersion)),
		"log", fmt.Sprintf("transaction %d, SHA-256 %s", p.Mark.Sequence, hex.EncodeToString(p.Mark.Hash)),
		"policies", "SHA-256 "+protocol.Printable(p.Digest), "asked by", protocol.Printable(p.Who),
		"begun", p.Begun.UTC().Format(time.RFC3339), "ended", p.Ended.UTC().Format(time.RFC3339), "result", "SHA-256 "+signed.SHA256())
	if len(p.Behind) > 0 {
		page.Facts("without the policies at first", protocol.Printable(strings.Join(p.Behind, ", ")))
	}
	page.Gap()
	rows := make([][]any, len(p.Classes))
	for i, k := range p.Classes {
		rows[i] = []any{fmt.Sprint(k.Class), words([]string{k.Segment}), words(k.Sites), words(k.Sides)}
	}
	page.Table([]string{"CLASS", "SEGMENT", "SITES", "MEANT BY"}, rows)
	page.Gap()
	rows = nil
	for _, x := range p.Pairs {
		if x.Result == protocol.ProofOutside { // they are in the signed result
			continue
		}
		result := frame.Cell{Text: protocol.Printable(x.Result), Meaning: frame.Bad}
		if x.Result == x.Want {
			result.Meaning = frame.Good
		}
		rows = append(rows, []any{result, fmt.Sprint(x.From), fmt.Sprint(x.To), protocol.Printable(x.Probe), proofEnd(x.Tried.FromNode, x.Tried.From.String()), proofEnd(x.Tried.ToNode, x.Tried.To.String()),
			words([]string{x.Layer}), words([]string{x.Second}), protocol.Printable(x.Why)})
	}
	page.Table([]string{"RESULT", "FROM", "TO", "PROBE", "SENT FROM", "SENT TO", "STOPPED BY", "THEN BY", "WHY"}, rows)
	page.Gap()
	verdict := "proven"
	if !s.Proven {
		verdict = "not proven"
	}
	page.Line("%s: %d closed, %d ARRIVED, %d not tried; of what is open %d arrived, %d did not; %d outside", verdict, s.Closed, s.Arrived, s.NotTried, s.Open, s.Lost, s.Outside)
}

func proofEnd(node, addr string) string {
	if node == "" {
		return "-"
	}
	return protocol.Printable(addr + " at " + node)
}

// words lists what a class is, or -.
func words(l []string) string {
	if text := strings.Join(l, "; "); text != "" {
		return protocol.Printable(text)
	}
	return "-"
}
