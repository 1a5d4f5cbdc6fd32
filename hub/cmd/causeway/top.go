package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
)

func (c *cli) top() *cobra.Command {
	every := 2 * time.Second
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show traffic, round trips, loss and paths of sites and nodes, live",
		Long: `Show for each pair of sites and for each node what it sends and receives, its largest
round trip time and loss, and which paths it uses, the busiest first. Nodes report
every 5 s. Keys: up and down move through the nodes, q ends it.`,
		Args: frame.Exactly(),
	}
	flagenv.DurationVar(cmd.Flags(), &every, "every", every, "read the hub anew so often, 500ms to 1m")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if every < 500*time.Millisecond || every > time.Minute {
			return frame.Usagef("--every %s is not between 500ms and 1m", every)
		}
		if !frame.IsTerminal(c.Out) || !frame.IsTerminal(c.In) {
			return errors.New("top needs a terminal; use 'causeway status', or 'causeway node list --watch'")
		}
		if _, err := hub.Version(ctx); err != nil {
			return err
		}
		c.Progress.End()
		return runTop(ctx, hub, every, c.Colour(), tea.WithInput(c.In), tea.WithOutput(c.Out))
	})
}

// runTop runs until a key or ctx ends it.
func runTop(ctx context.Context, hub *api.Client, every time.Duration, colour bool, o ...tea.ProgramOption) error {
	m := &topModel{ctx: ctx, hub: hub, every: every, colour: colour, width: 80, height: 24}
	_, err := tea.NewProgram(m, append(o, tea.WithContext(ctx), tea.WithoutSignalHandler())...).Run()
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil
	}
	return err
}

// topModel is the screen. bubbletea calls its methods one at a time.
type topModel struct {
	ctx           context.Context
	hub           *api.Client
	every         time.Duration
	colour        bool
	width, height int
	first         int // node at the top of the list

	meter meter
	read  sample
	err   error
	any   bool
}

// sample is one reading of the hub.
type sample struct {
	at     time.Time
	status api.Status
	nodes  []api.Node
	err    error
}

type tick struct{}

// Init reads at once.
func (m *topModel) Init() tea.Cmd { return m.fetch }

func (m *topModel) fetch() tea.Msg {
	s := sample{}
	if s.status, s.err = m.hub.Status(m.ctx); s.err == nil {
		s.nodes, s.err = m.hub.Nodes(m.ctx)
	}
	s.at = time.Now()
	return s
}

// Update takes keys, sizes and readings.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
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
	case sample:
		m.err = msg.err
		if msg.err == nil {
			m.read, m.any = msg, true
			m.meter.feed(msg.at, msg.nodes)
		}
		return m, tea.Tick(m.every, func(time.Time) tea.Msg { return tick{} })
	case tick:
		return m, m.fetch
	}
	return m, nil
}

// View draws the screen.
func (m *topModel) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}

// screen is the text of the screen, as many lines as it has at most, none longer than
// it is wide.
func (m *topModel) screen() string {
	p := &frame.Page{Colour: m.colour}
	switch {
	case m.err != nil:
		p.Line("%s", p.Paint(frame.Bad, "the hub does not answer, trying again: "+m.err.Error()))
	case !m.any:
		p.Line("reading the hub…")
	default:
		bad := len(troubles(m.read.status, m.read.nodes))
		p.Line("Causeway hub %d, up %s · %d sites, %d nodes · %d things are wrong or wait ('causeway status')", m.read.status.Hub.Number, frame.Age(m.read.status.Hub.Started), len(m.read.status.Sites), len(m.read.nodes), bad)
	}
	pairs, nodes := m.meter.siteLoads(m.read.nodes), m.meter.nodeLoads(m.read.nodes)
	room := max(m.height-6, 4) // for rows: head, gap and header twice, foot
	forPairs := min(len(pairs), max(room/2, room-len(nodes)))
	forNodes := max(room-forPairs, 1)
	rows := func(l []*load, more func(*load) []any) (out [][]any) {
		for _, x := range l {
			rx, tx := "-", "-"
			if x.rated {
				rx, tx = rate(x.rx), rate(x.tx)
			}
			loss := frame.Cell{Text: fmt.Sprintf("%.0f%%", 100*x.loss)}
			if x.loss >= 0.01 {
				loss.Meaning = frame.Warn
			}
			out = append(out, append(more(x), rx, tx, frame.Millis(x.rtt), loss, kindCounts(x.paths)))
		}
		return out
	}
	if len(pairs) > 0 {
		p.Gap()
		p.Table([]string{"SITE", "WITH", "RECEIVES", "SENDS", "RTT", "LOSS", "PATHS"}, rows(pairs[:forPairs], func(l *load) []any { return []any{l.from, l.to} }))
	}
	if len(nodes) > 0 {
		m.first = max(0, min(m.first, len(nodes)-forNodes))
		p.Gap()
		p.Table([]string{"NODE", "STATE", "RECEIVES", "SENDS", "RTT", "LOSS", "PATHS"},
			rows(nodes[m.first:min(len(nodes), m.first+forNodes)], func(l *load) []any {
				s := stateCell(strings.TrimSuffix(l.state, ",drained"))
				s.Text = l.state
				return []any{l.from, s}
			}))
	}
	lines := strings.Split(strings.TrimRight(p.String(), "\n"), "\n")
	foot := "q ends"
	if len(nodes) > forNodes {
		foot += fmt.Sprintf(" · nodes %d to %d of %d, up and down move", m.first+1, m.first+forNodes, len(nodes))
	}
	if len(lines) > m.height-1 {
		lines = lines[:max(m.height-1, 0)]
	}
	lines = append(lines, foot)
	for i, l := range lines {
		lines[i] = text.Trim(l, m.width)
	}
	return strings.Join(lines, "\n")
}
