package main

import (
	"fmt"
	"strings"
)

// row is a line of the table: one figure, or several with a slash between.
type row struct {
	name    string
	digits  int
	figures []string
}

func byRole(figure string) (out []string) {
	for _, r := range roles {
		out = append(out, figure+r)
	}
	return out
}

var rows = []row{
	{"TCP 1 stream Gbit/s", 2, []string{figTCP1}},
	{"TCP 8 streams Gbit/s", 2, []string{figTCP8}},
	{"TCP 10 streams Gbit/s", 2, []string{figTCP10}},
	{"UDP 200 B kpps", 0, []string{figUDP}},
	{"ping idle p50/p99", 2, []string{figIdleP50, figIdleP99}},
	{"ping TCP 1 p50/p99", 1, []string{figLoadedP50, figLoadedP99}},
	{"CPU-s/GB TCP 1 s/h/r", 1, byRole(figCPU1)},
	{"CPU-s/GB TCP 8 s/h/r", 1, byRole(figCPU8)},
	{"CPU-s/GB TCP 10 s/h/r", 1, byRole(figCPU10)},
	{"MB idle s/h/r", 0, byRole(figIdleMB)},
	{"MB TCP 8 s/h/r", 0, byRole(figLoadedMB)},
}

// columnsInLine of the table are at most 142 characters.
const columnsInLine = 8

// table is what a person reads.
func (r *result) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d rounds of %g s, mode %s, %d CPUs, Linux %s, %s\ncommit %.12s%s, wireguard-go %s\n", r.Options.Rounds, r.Options.Seconds,
		r.Options.Mode, r.Versions.CPUs, r.Versions.Kernel, r.Versions.Go, r.Versions.Commit,
		map[bool]string{true: " and changes"}[r.Versions.Changed], r.Versions.WireGuard)
	b.WriteString(`Medians. s/h/r: sender, hub, receiver. UDP: most that arrives with less than 1 % lost. ping in ms.
inline-stream: UDP does not pass. relay-208KB: hub with such socket buffers. relay-10: one site sends to ten.
direct-10+1000: so too, with 1,000 more peers that are idle.
`)
	for at := 0; at < len(r.Options.Columns); at += columnsInLine {
		r.lines(&b, r.Options.Columns[at:min(at+columnsInLine, len(r.Options.Columns))])
	}
	b.WriteString("\nRatios within a round                             median      interval       target\n")
	few := false
	for _, c := range r.Compared {
		e := c.Estimate
		fmt.Fprintf(&b, "%-48s %7.2f   %6.2f to %-6.2f  %s\n", c.What, e.Median, e.Low, e.High, c.Target)
		few = few || !e.Enough
	}
	if few {
		b.WriteString("Intervals are from the smallest to the largest: 95 % takes 6 rounds or more.\n")
	} else {
		b.WriteString("Intervals hold the median with 95 % confidence (order statistics).\n")
	}
	return b.String()
}

// lines writes some columns; figures that none of them has are left out.
func (r *result) lines(b *strings.Builder, columns []string) {
	fmt.Fprintf(b, "\n%-22s", "")
	for _, c := range columns {
		fmt.Fprintf(b, "%15s", c)
	}
	b.WriteByte('\n')
	for _, row := range rows {
		line, found := fmt.Sprintf("%-22s", row.name), false
		for _, c := range columns {
			cell := r.cell(c, row)
			line += fmt.Sprintf("%15s", cell)
			found = found || cell != "-"
		}
		if found {
			b.WriteString(line + "\n")
		}
	}
}

func (r *result) cell(column string, row row) string {
	var parts []string
	found := false
	for _, f := range row.figures {
		e, ok := r.Medians[f][column]
		if !ok {
			parts = append(parts, "-")
			continue
		}
		found = true
		parts = append(parts, fmt.Sprintf("%.*f", row.digits, e.Median))
	}
	if !found {
		return "-"
	}
	return strings.Join(parts, "/")
}
