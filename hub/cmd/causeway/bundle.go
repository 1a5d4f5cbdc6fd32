package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

// Bounds of a bundle.
const (
	bundleAtOnce  = 8       // nodes asked
	bundleEach    = 4 << 20 // bytes of a document of a node
	bundleDocTime = 15 * time.Second
	bundleBytes   = 512 << 20
)

// bundleDocs are the debug documents of a node that go into a bundle.
var bundleDocs = []string{"v1/health", "v1/status", "v1/peers", "v1/paths", "v1/netmap", "v1/routes", "v1/runtime", "v1/uses", "metrics"}

// secretText is what a secret looks like. Nothing that a bundle gathers holds one; should a
// label or a cause hold one all the same, it is blotted out.
var secretText = regexp.MustCompile(`cw1\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{20,}|(wgkey|idkey|clusterkey):[A-Za-z0-9_-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*|AGE-SECRET-KEY-1[A-Z0-9]+`)

func (c *cli) bundle() *cobra.Command {
	limit := 5 * time.Minute
	cmd := &cobra.Command{
		Use:   "bundle FILE",
		Short: "Gather what support needs into one archive, without secrets",
		Long: `Write a tar.gz archive to FILE, which must not exist: the hub's status, version and
settings, sites, nodes, routes, tokens without their secrets, inventory, events, audit,
and of every node what its agent tells of itself: health, peers, paths, netmap, routes and
rules, metrics. MISSING.txt says what could not be had, and why.

No keys, token secrets, signatures or credentials are in it; names, labels, addresses and routes of
your network are.`,
		Args: frame.Exactly("FILE"),
	}
	flagenv.DurationVar(cmd.Flags(), &limit, "timeout", limit, "leave out what was not had by then")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if limit <= 0 || limit > time.Hour {
			return frame.Usagef("--timeout %s is not between 1s and 1h", limit)
		}
		// A hub that does not answer is no reason for an archive with nothing in it.
		v, err := hub.Version(ctx)
		if err != nil {
			return err
		}
		b := &bundler{c: c, hub: hub, made: time.Now().UTC()}
		if err := frame.WriteNew(args[0], func(w io.Writer) error {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			return b.write(ctx, w, v)
		}); err != nil {
			return err
		}
		return c.Show(b.result(args[0]), []string{args[0]}, func(p *frame.Page) {
			p.Line("%s: %d documents of the hub and %d nodes, %s", args[0], b.files, b.nodes, frame.Size(uint64(b.bytes)))
			if n := len(b.missing); n > 0 {
				p.Line("%d could not be had; MISSING.txt in the archive says why", n)
			}
		})
	})
}

// bundler writes an archive; several goroutines may add to it.
type bundler struct {
	c    *cli
	hub  *api.Client
	made time.Time

	mu      sync.Mutex
	tar     *tar.Writer
	err     error // the archive's
	files   int
	nodes   int
	bytes   int64
	missing []string
}

type bundleResult struct {
	File    string   `json:"file"`
	Files   int      `json:"files"`
	Nodes   int      `json:"nodes"`
	Missing []string `json:"missing"`
}

func (b *bundler) result(file string) bundleResult {
	return bundleResult{file, b.files, b.nodes, append([]string{}, b.missing...)}
}

// lack notes what could not be had.
func (b *bundler) lack(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.missing = append(b.missing, protocol.OneLine(name+": "+err.Error(), 500))
}

// withoutSignatures is a JSON document without what its fields called "signature" hold. A
// node's signed statement is shown to hubs in its name, so nobody needs it here.
func withoutSignatures(doc []byte) []byte {
	if !bytes.Contains(doc, []byte("ignature")) { // however the s is written
		return doc
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil || !blank(v) {
		return doc
	}
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil
	}
	return append(out, '\n')
}

// blank blanks signatures in v and reports whether there were any.
func blank(v any) (found bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if strings.EqualFold(k, "signature") { // as a decoder reads it
				v[k], found = "[not shown]", true
				continue
			}
			found = blank(x) || found
		}
	case []any:
		for _, x := range v {
			found = blank(x) || found
		}
	}
	return found
}

// add puts a file into the archive.
func (b *bundler) add(name string, content []byte) {
	if strings.HasSuffix(name, ".json") {
		content = withoutSignatures(content)
	}
	content = secretText.ReplaceAll(content, []byte("[a secret was here]"))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes+int64(len(content)) > bundleBytes {
		b.missing = append(b.missing, name+": the archive has no room for it")
		return
	}
	if b.err == nil {
		b.err = b.tar.WriteHeader(&tar.Header{Name: "causeway-bundle/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: b.made, Format: tar.FormatPAX})
	}
	if b.err == nil {
		_, b.err = b.tar.Write(content)
	}
	b.files++
	b.bytes += int64(len(content))
}

// gather adds what get returns as JSON.
func gather[T any](ctx context.Context, b *bundler, name string, get func(context.Context) (T, error)) (v T) {
	v, err := get(ctx)
	if err == nil {
		var text []byte
		if text, err = json.MarshalIndent(v, "", " "); err == nil {
			b.add(name, append(text, '\n'))
			return v
		}
	}
	b.lack(name, err)
	return v
}

func (b *bundler) write(ctx context.Context, w io.Writer, v api.Version) error {
	zip := gzip.NewWriter(w)
	b.tar = tar.NewWriter(zip)
	h := b.hub
	gather(ctx, b, "hub/version.json", func(context.Context) (api.Version, error) { return v, nil })
	gather(ctx, b, "hub/status.json", h.Status)
	gather(ctx, b, "hub/settings.json", h.Settings)
	gather(ctx, b, "hub/sites.json", h.Sites)
	gather(ctx, b, "hub/routes.json", h.Routes)
	gather(ctx, b, "hub/tokens.json", h.Tokens)
	gather(ctx, b, "hub/inventory.json", h.Inventories)
	gather(ctx, b, "hub/events.json", func(ctx context.Context) ([]api.Event, error) { return h.Events(ctx, 1000) })
	gather(ctx, b, "hub/audit.json", func(ctx context.Context) ([]api.AuditEntry, error) { return h.Audit(ctx, 1000) })
	nodes := gather(ctx, b, "hub/nodes.json", h.Nodes)
	b.nodes = len(nodes)
	var g errgroup.Group
	g.SetLimit(bundleAtOnce)
	for i, n := range nodes {
		g.Go(func() error {
			b.c.Progress.Now("asking node %s, %d of %d", n.Name, i+1, len(nodes))
			b.node(ctx, n)
			return nil
		})
	}
	g.Wait()
	slices.Sort(b.missing)
	text := "Nothing is missing.\n"
	if len(b.missing) > 0 {
		text = strings.Join(b.missing, "\n") + "\n"
	}
	b.add("MISSING.txt", []byte(text))
	if b.err == nil {
		b.err = b.tar.Close()
	}
	if b.err == nil {
		b.err = zip.Close()
	}
	return b.err
}

// node adds what an agent tells of itself. One that does not answer once is not asked again.
func (b *bundler) node(ctx context.Context, n api.Node) {
	if !protocol.ValidName(n.Name) {
		b.lack("nodes/"+n.Name, fmt.Errorf("not a node's name"))
		return
	}
	if n.State == api.NodeUnreachable {
		b.lack("nodes/"+n.Name, fmt.Errorf("the node is unreachable: %s", strings.Join(n.Reasons, "; ")))
		return
	}
	for _, doc := range bundleDocs {
		name := "nodes/" + n.Name + "/" + strings.TrimPrefix(doc, "v1/")
		each, cancel := context.WithTimeout(ctx, bundleDocTime)
		text, err := b.hub.DebugDocument(each, n.Name, doc, bundleEach)
		late := each.Err() != nil
		cancel()
		if err == nil && strings.HasPrefix(doc, "v1/") {
			var out bytes.Buffer
			if err = json.Indent(&out, text, "", " "); err == nil {
				text, name = out.Bytes(), name+".json"
			}
		}
		if err != nil {
			b.lack(name, err)
			if late {
				b.lack("nodes/"+n.Name, fmt.Errorf("it answers too slowly: the rest was not asked for"))
				return
			}
			continue
		}
		b.add(name, text)
	}
}
