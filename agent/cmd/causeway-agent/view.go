package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	agentdebug "causeway/agent/debug"
	"causeway/protocol"
)

// version is set by the linker.
var version = "dev"

func versionCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version  string `json:"version"`
				Protocol int    `json:"protocol"`
				Commit   string `json:"commit,omitempty"`
				Go       string `json:"go"`
			}{version, protocol.Version, commit(), runtime.Version()}
			return o.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "causeway-agent %s (protocol %d, commit %s, %s)\n", v.Version, v.Protocol, v.Commit, v.Go)
			})
		},
	}
	o.outputFlag(cmd)
	return cmd
}

func commit() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

func (o *options) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "table or json")
}

// print writes v as JSON, or what text writes.
func (o *options) print(w io.Writer, v any, text func(io.Writer)) error {
	switch o.output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "table":
		var b strings.Builder
		text(&b)
		_, err := io.WriteString(w, protocol.PrintableLines(b.String()))
		return err
	}
	return fmt.Errorf("output %q is none; use -o table or -o json", o.output)
}

// viewCommands read one debug endpoint each.
func viewCommands(o *options) []*cobra.Command {
	return []*cobra.Command{
		view(o, "status", "Show the agent on one screen", protocol.DebugStatus, writeStatus),
		view(o, "health", "Show the health conditions", protocol.DebugHealth, func(w io.Writer, h agentdebug.Health) { writeConditions(w, h.Conditions) }),
		view(o, "paths", "Show how each peer is reached", protocol.DebugPaths, writePaths),
		view(o, "routes", "Show the host's network as planned and as found", protocol.DebugRoutes, writeRoutes),
		view(o, "incidents", "Show what others changed on this host and the agent put back, and times without a hub", protocol.DebugIncidents, writeIncidents),
		view(o, "netmap", "Show the netmap and what was refused of it", protocol.DebugNetmap, writeNetmap),
	}
}

func view[T any](o *options, name, short, path string, text func(io.Writer, T)) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.output != "table" && o.output != "json" {
				return o.print(nil, nil, nil)
			}
			if err := o.findSocket(); err != nil {
				return err
			}
			var v T
			if err := agentdebug.NewClient(o.socket).Get(cmd.Context(), path, &v); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), v, func(w io.Writer) { text(w, v) })
		},
	}
	o.socketFlag(cmd)
	o.configFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}

func newTable(w io.Writer, head ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	s := table.StyleDefault
	s.Options = table.OptionsNoBordersAndSeparators
	s.Box.PaddingLeft, s.Box.PaddingRight = "", "  "
	t.SetStyle(s)
	t.AppendHeader(head)
	return t
}

func writeStatus(w io.Writer, s agentdebug.Status) {
	hub := "not connected"
	if s.Hub != 0 {
		hub = fmt.Sprintf("connected to hub %d (%s)", s.Hub, s.HubVersion)
	}
	fmt.Fprintf(w, "node      %s (number %d), site %s\noverlay   %s on %s\nagent     %s, engine %s, up %s\ncontrol   %s\nnetmap    %s, %d peers\nroutes    %s\nshields   %s\n\n",
		s.Name, s.Number, s.Site, joinStrings(s.Overlay), s.Interface, s.Version, s.Engine, ago(s.Started), hub, s.Netmap, s.Peers, joinStrings(s.Routes), s.Shields)
	if l := s.Drops.Lines(); len(l) > 0 {
		fmt.Fprintf(w, "dropped   %s\n\n", strings.Join(l, ", "))
	}
	if s.Joined != nil {
		fmt.Fprintf(w, "joined    %s\n", s.Joined)
	}
	if s.Lacks != "" {
		fmt.Fprintf(w, "lacks     %s\n", s.Lacks)
	}
	if s.Joined != nil || s.Lacks != "" {
		fmt.Fprintln(w)
	}
	for _, i := range s.Items {
		fmt.Fprintf(w, "%-9s %s: %s\n", i.Kind, i.Name, i.Text)
	}
	writeClosed(w, s.Held)
	for _, x := range s.Stays {
		of := "of " + x.Peer
		if x.Peer == "" {
			of = "which is closed"
		}
		fmt.Fprintf(w, "local     %s stays this host's own inside %s %s: what the other site has there is not reached\n", x.Own, x.Range, of)
	}
	for _, x := range s.Apart {
		fmt.Fprintf(w, "outside   %s (%s) stays outside the tunnel; %s\n", x.Addr, x.What, x.Advice)
	}
	for _, x := range s.Taken {
		fmt.Fprintf(w, "taken     %s: accept: names it exactly, so that it goes into the tunnel and this host does not reach its own\n", x)
	}
	if len(s.Held)+len(s.Stays)+len(s.Apart)+len(s.Taken) > 0 {
		fmt.Fprintln(w)
	}
	writeConditions(w, s.Conditions)
}

// closedShown is how many closed ranges status names: policies may close hundreds.
const closedShown = 5

func writeClosed(w io.Writer, l []agentdebug.HeldRange) {
	var names []string
	for _, r := range l[:min(len(l), closedShown)] {
		names = append(names, fmt.Sprintf("%s since %s", r.Prefix, r.Since.Format(time.RFC3339)))
	}
	switch n := len(l); {
	case n == 1:
		fmt.Fprintf(w, "closed    %s, as no peer has it any more; 'causeway-agent release %s' lets it go to the host's own routes\n", names[0], l[0].Prefix)
	case n > 1:
		if more := n - len(names); more > 0 {
			names = append(names, fmt.Sprintf("and %d more (-o json)", more))
		}
		fmt.Fprintf(w, "closed    %d ranges, as no peer has them any more; 'causeway-agent release RANGE' lets one go to the host's own routes: %s\n", n, strings.Join(names, ", "))
	}
}

func writeConditions(w io.Writer, l []protocol.Condition) {
	t := newTable(w, "condition", "ok", "since", "cause")
	for _, c := range l {
		t.AppendRow(table.Row{c.Name, yesNo(c.OK), ago(c.Since), c.Cause + c.Note})
	}
	t.Render()
}

func writePaths(w io.Writer, l []protocol.PathStatus) {
	t := newTable(w, "peer", "name", "path", "addr", "rtt", "loss", "mtu", "since", "received", "sent")
	for _, p := range l {
		addr := ""
		if p.Addr.IsValid() {
			addr = p.Addr.String()
		}
		rtt := ""
		if p.RTT > 0 {
			rtt = p.RTT.Round(10 * time.Microsecond).String()
		}
		mtu := ""
		if p.MTU > 0 {
			mtu = strconv.Itoa(p.MTU)
		}
		t.AppendRow(table.Row{p.Peer, p.Name, p.Shown(), addr, rtt, fmt.Sprintf("%.0f%%", 100*p.Loss), mtu, ago(p.Since), bytes(p.RxBytes), bytes(p.TxBytes)})
	}
	t.Render()
}

func writeRoutes(w io.Writer, r agentdebug.Routes) {
	for _, a := range r.Announced {
		fmt.Fprintf(w, "announced %s: %s\n", a.Prefix, a.State)
	}
	for _, p := range r.Refused {
		fmt.Fprintf(w, "refused   %s: %s\n", p.Part(), p.Reason)
	}
	missing := map[string]bool{}
	for _, l := range r.Missing {
		missing[l] = true
	}
	for _, l := range r.Planned {
		mark := "  "
		if missing[l] {
			mark = "- "
		}
		fmt.Fprintln(w, mark+l)
	}
	for _, l := range r.Extra {
		fmt.Fprintln(w, "+ "+l)
	}
	fmt.Fprintf(w, "%d planned, %d missing (-), %d not planned (+)\n", len(r.Planned), len(r.Missing), len(r.Extra))
	if r.Error != "" {
		fmt.Fprintln(w, "error: "+r.Error)
	}
}

func writeIncidents(w io.Writer, l []protocol.Incident) {
	if len(l) == 0 {
		fmt.Fprintln(w, "no incidents")
		return
	}
	t := newTable(w, "incident", "since", "subject", "state", "lasted", "reason", "action", "felt")
	for _, i := range l {
		t.AppendRow(table.Row{i.Number, i.Since.Local().Format("2006-01-02 15:04:05"), i.Subject, i.State, fmt.Sprintf("%.1fs", i.Seconds), i.Reason, i.Action, i.Felt})
	}
	t.Render()
}

func writeNetmap(w io.Writer, n agentdebug.Netmap) {
	if !n.Held {
		fmt.Fprintln(w, "no netmap yet")
		return
	}
	expires := "never"
	if !n.Expires.IsZero() {
		expires = n.Expires.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "version %s, confirmed %s ago, expires %s\n", n.Netmap.NetmapVersion, ago(n.Confirmed), expires)
	t := newTable(w, "peer", "name", "site", "overlay", "routes", "direct")
	for _, p := range n.Netmap.Peers {
		t.AppendRow(table.Row{p.Number(), p.Name, p.Site, joinStrings(p.Overlay), joinStrings(p.Routes), yesNo(p.Direct)})
	}
	t.Render()
	for _, p := range n.Refused {
		fmt.Fprintf(w, "refused: %s: %s\n", p.Part(), p.Reason)
	}
	for _, e := range n.Errors {
		fmt.Fprintln(w, "error: "+e)
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return time.Since(t).Round(time.Second).String()
}

func bytes(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func joinStrings[T fmt.Stringer](l []T) string {
	out := make([]string, len(l))
	for i, x := range l {
		out[i] = fmt.Sprint(x)
	}
	return strings.Join(out, " ")
}
