package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

// topApart is how long lies between the two readings of --once.
const topApart = time.Second

func (c *cli) serviceTop() *cobra.Command {
	every := 2 * time.Second
	var node string
	var once bool
	cmd := &cobra.Command{
		Use: "top [NAME]", Short: "Show connections to services and sites, live, as their clients' nodes count them", Args: frame.Between(0, "NAME"),
		Long: fmt.Sprintf(`Show for each service and site what share of new connections it has, how many are open and
only begun, how many begin a second, what they carry and the round trip to the nearest
backend's node, summed over the first %d nodes, or of one (--node). TRAFFIC is known where the
kernel counts bytes: sysctl net.netfilter.nf_conntrack_acct=1. NEW/S leaves out those that were
refused at once. Without a terminal, or with --once, it prints two readings' difference and ends.`, explainNodes),
		Example:           "  causeway service top\n  causeway service top web --node sh-1 --once",
		ValidArgsFunction: c.Completer(1, c.serviceNames),
	}
	flagenv.DurationVar(cmd.Flags(), &every, "every", every, "ask the nodes anew so often, 1s to 1m")
	cmd.Flags().BoolVar(&once, "once", false, "print it once")
	cmd.Flags().StringVar(&node, "node", "", "as this node counts alone")
	frame.Must(cmd.RegisterFlagCompletionFunc("node", c.Completer(1, nodeNames)))
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if every < time.Second || every > time.Minute {
			return frame.Usagef("--every %s is not between 1s and 1m", every)
		}
		r := loadReader{hub: hub, service: protocol.ServicesCounted}
		if len(args) > 0 {
			s, err := findService(ctx, hub, args[0])
			if err != nil {
				return err
			}
			r.service = s.Name
		}
		if node != "" {
			if _, err := hub.Node(ctx, node); err != nil {
				return err
			}
			r.nodes = []string{node}
		}
		if once || c.Format != frame.FormatTable || !frame.IsTerminal(c.Out) || !frame.IsTerminal(c.In) {
			return c.loadsOnce(ctx, r)
		}
		c.Progress.End()
		return runServiceTop(ctx, r, every, c.Colour(), tea.WithInput(c.In), tea.WithOutput(c.Out))
	})
}

func (c *cli) loadsOnce(ctx context.Context, r loadReader) error {
	first, err := r.read(ctx)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(topApart):
	}
	second, err := r.read(ctx)
	if err != nil {
		return err
	}
	if err := second.failed(); err != nil {
		return err
	}
	l := serviceLoads(first, second)
	return frame.List(c.CLI, l, func(x serviceLoad) string { return x.Service + " " + x.Site }, "No node that answers knows of such a service",
		loadHeader, func(_ *frame.Page, x serviceLoad) []any { return x.row() })
}

// loadReader asks nodes how much their clients use services.
type loadReader struct {
	hub     *api.Client
	nodes   []string // none: those that are up, the first of them
	service string   // or protocol.ServicesCounted
}

// loads are what nodes answered.
type loads struct {
	at    time.Time
	views map[string]*protocol.ServicesView
	errs  []string
	left  int // nodes that were not asked
}

// failed is why nothing is known.
func (l loads) failed() error {
	if len(l.views) == 0 && len(l.errs) > 0 {
		return errors.New(l.errs[0])
	}
	return nil
}

func (r loadReader) read(ctx context.Context) (loads, error) {
	out := loads{views: map[string]*protocol.ServicesView{}}
	names := r.nodes
	if names == nil {
		nodes, err := r.hub.Nodes(ctx)
		if err != nil {
			return out, err
		}
		names, out.left = askable(nodes)
	}
	seen := make([]seenBy, len(names))
	var wg sync.WaitGroup
	for i, n := range names {
		wg.Go(func() { seen[i] = askServices(ctx, r.hub, n, r.service) })
	}
	wg.Wait()
	out.at = time.Now()
	for _, x := range seen {
		if x.Error != "" {
			out.errs = append(out.errs, fmt.Sprintf("node %s: %s", x.Node, x.Error))
		} else {
			out.views[x.Node] = x.View
		}
	}
	return out, ctx.Err()
}

// askable are the first nodes that can be asked about services, and how many more there are.
func askable(nodes []api.Node) (names []string, left int) {
	for _, n := range nodes {
		if n.State == api.NodeReady || n.State == api.NodeDegraded {
			names = append(names, n.Name)
		}
	}
	left = max(0, len(names)-explainNodes)
	return names[:len(names)-left], left
}

func askServices(ctx context.Context, hub *api.Client, node, service string) seenBy {
	ctx, cancel := context.WithTimeout(ctx, explainWait)
	defer cancel()
	out := seenBy{Node: node}
	b, err := hub.DebugDocument(ctx, node, strings.TrimPrefix(protocol.DebugServices, "/")+"?name="+service, maxServicesView)
	if err == nil {
		err = json.Unmarshal(b, &out.View)
	}
	if err == nil && out.View == nil {
		err = errors.New("its answer is empty")
	}
	if err != nil {
		out.View, out.Error = nil, protocol.OneLine(err.Error(), 256)
	}
	return out
}

// serviceLoad is how much clients use a service at a site.
type serviceLoad struct {
	Service string   `json:"service"`
	Site    string   `json:"site"`
	Share   float64  `json:"share_percent"` // of new connections, on average over the nodes
	Nodes   int      `json:"nodes"`         // that were asked and know of the service
	Open    int      `json:"connections"`
	Half    int      `json:"unanswered"`
	New     *float64 `json:"new_per_second,omitempty"`   // absent: not known yet
	Bytes   *float64 `json:"bytes_per_second,omitempty"` // absent: no node's kernel counts them
	RTT     float64  `json:"rtt_seconds"`                // to the nearest backend's node; 0: not known
}

var loadHeader = []string{"SERVICE", "SITE", "SHARE", "OPEN", "UNANSWERED", "NEW/S", "TRAFFIC", "RTT", "+NODES"}

func (x serviceLoad) row() []any {
	fresh, bytes, rtt := "-", "-", "-"
	if x.New != nil {
		fresh = fmt.Sprintf("%.1f", *x.New)
	}
	if x.Bytes != nil {
		bytes = rate(*x.Bytes)
	}
	if x.RTT > 0 {
		rtt = fmt.Sprintf("%.1f ms", x.RTT*1000)
	}
	share := frame.Cell{Text: fmt.Sprintf("%.0f %%", x.Share)}
	if x.Site == "" {
		share = frame.Cell{Text: "refused", Meaning: frame.Bad}
	}
	return []any{shortened(x.Service, nameShown), cmp.Or(shortened(x.Site, nameShown), "-"), share, x.Open, x.Half, fresh, bytes, rtt, x.Nodes}
}

// loadKey is a service at a site.
type loadKey struct{ service, site string }

// serviceLoads are the loads between two readings, by service and then the busiest site first. A counter that went down is of an
// agent that started anew, and tells nothing.
func serviceLoads(before, now loads) []serviceLoad {
	type total struct {
		serviceLoad
		begun, bytes     float64 // a second
		known, bytesSeen bool
	}
	rows := map[loadKey]*total{}
	row := func(service, site string) *total {
		k := loadKey{service, site}
		if rows[k] == nil {
			rows[k] = &total{serviceLoad: serviceLoad{Service: service, Site: site}}
		}
		return rows[k]
	}
	nodes := map[string]int{}
	for node, v := range now.views {
		was := endpointsOf(before.views[node])
		apart := 0.0
		if b := before.views[node]; b != nil && !b.Counted.IsZero() {
			apart = v.Counted.Sub(b.Counted).Seconds()
		}
		for _, s := range v.Services {
			nodes[s.Name]++
			slots := 0
			for _, x := range s.Endpoints {
				slots += x.Slots
			}
			if slots == 0 {
				row(s.Name, "")
			}
			for _, x := range s.Endpoints {
				r := row(s.Name, x.Site)
				if slots > 0 {
					r.Share += 100 * float64(x.Slots) / float64(slots)
				}
				r.Open, r.Half = r.Open+x.Open, r.Half+x.Half
				if rtt := x.RTT.Seconds(); rtt > 0 && (r.RTT == 0 || rtt < r.RTT) {
					r.RTT = rtt
				}
				old, there := was[loadKey{s.Name, x.Addr.String()}]
				if apart <= 0 || there && x.Begun < old.Begun {
					continue
				}
				r.known = true
				r.begun += float64(x.Begun-old.Begun) / apart
				if x.Counted && x.Bytes >= old.Bytes {
					r.bytesSeen = true
					r.bytes += float64(x.Bytes-old.Bytes) / apart
				}
			}
		}
	}
	out := make([]serviceLoad, 0, len(rows))
	for _, r := range rows {
		x := r.serviceLoad
		if x.Nodes = nodes[x.Service]; x.Nodes > 0 {
			x.Share /= float64(x.Nodes)
		}
		if r.known {
			x.New = &r.begun
		}
		if r.bytesSeen {
			x.Bytes = &r.bytes
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b serviceLoad) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(b.Share, a.Share), cmp.Compare(a.Site, b.Site))
	})
	return out
}

func endpointsOf(v *protocol.ServicesView) map[loadKey]protocol.ServiceEndpointView {
	out := map[loadKey]protocol.ServiceEndpointView{}
	if v == nil {
		return out
	}
	for _, s := range v.Services {
		for _, x := range s.Endpoints {
			out[loadKey{s.Name, x.Addr.String()}] = x
		}
	}
	return out
}

// runServiceTop runs until a key or ctx ends it.
func runServiceTop(ctx context.Context, r loadReader, every time.Duration, colour bool, o ...tea.ProgramOption) error {
	m := &serviceTopModel{ctx: ctx, reader: r, every: every, colour: colour, width: 80, height: 24}
	_, err := tea.NewProgram(m, append(o, tea.WithContext(ctx), tea.WithoutSignalHandler())...).Run()
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil
	}
	return err
}

// serviceTopModel is the screen. bubbletea calls its methods one at a time.
type serviceTopModel struct {
	ctx           context.Context
	reader        loadReader
	every         time.Duration
	colour        bool
	width, height int
	first         int // row at the top

	before, now loads
	err         error
}

// loadsRead is one reading.
type loadsRead struct {
	loads
	err error
}

// Init reads at once.
func (m *serviceTopModel) Init() tea.Cmd { return m.fetch }

func (m *serviceTopModel) fetch() tea.Msg {
	l, err := m.reader.read(m.ctx)
	return loadsRead{l, err}
}

// Update takes keys, sizes and readings.
func (m *serviceTopModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		case "down", "j":
			m.first++
		case "up", "k":
			m.first = max(0, m.first-1)
		}
	case loadsRead:
		if m.err = msg.err; msg.err == nil {
			m.before, m.now = m.now, msg.loads
		}
		return m, tea.Tick(m.every, func(time.Time) tea.Msg { return tick{} })
	case tick:
		return m, m.fetch
	}
	return m, nil
}

// View draws the screen.
func (m *serviceTopModel) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}

// screen is its text, as many lines as it has at most, none longer than it is wide.
func (m *serviceTopModel) screen() string {
	p := &frame.Page{Colour: m.colour}
	foot := "q ends"
	switch {
	case m.err != nil:
		p.Line("%s", p.Paint(frame.Bad, "the hub does not answer, trying again: "+m.err.Error()))
	case m.now.at.IsZero():
		p.Line("asking the nodes…")
	default:
		head := counts(len(m.now.views), "node")
		if n := len(m.now.errs); n > 0 {
			head += fmt.Sprintf(" · %d did not answer, such as %s", n, m.now.errs[0])
		}
		if m.now.left > 0 {
			head += fmt.Sprintf(" · %d not asked", m.now.left)
		}
		p.Line("%s", head)
		l := serviceLoads(m.before, m.now)
		room := max(m.height-4, 1)
		m.first = max(0, min(m.first, len(l)-room))
		rows := make([][]any, 0, room)
		for _, x := range l[m.first:min(len(l), m.first+room)] {
			rows = append(rows, x.row()[:len(loadHeader)-1])
		}
		p.Gap()
		p.Table(loadHeader[:len(loadHeader)-1], rows)
		if len(l) > room {
			foot += fmt.Sprintf(" · rows %d to %d of %d, up and down move", m.first+1, m.first+len(rows), len(l))
		}
	}
	lines := strings.Split(strings.TrimRight(p.String(), "\n"), "\n")
	lines = append(lines[:min(len(lines), max(m.height-1, 0))], foot)
	for i, l := range lines {
		lines[i] = text.Trim(l, m.width)
	}
	return strings.Join(lines, "\n")
}
