package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// result is the result file.
type result struct {
	Time     time.Time                      `json:"time"`
	Options  options                        `json:"options"`
	Versions versions                       `json:"versions"`
	Medians  map[string]map[string]estimate `json:"medians"` // by figure and column
	Compared []compared                     `json:"compared"`
	Samples  []sample                       `json:"samples"`
}

// versions are of what was measured, and where.
type versions struct {
	Commit    string `json:"commit"`
	Changed   bool   `json:"changed_since_commit"`
	Go        string `json:"go"`
	Kernel    string `json:"kernel"`
	WireGuard string `json:"wireguard_go"`
	CPUs      int    `json:"cpus"`
}

// sample is all figures of one column in one round.
type sample struct {
	Round   int                `json:"round"`
	Column  string             `json:"column"`
	Place   int                `json:"place"` // in the round's order
	Figures map[string]float64 `json:"figures"`
}

func readVersions(ctx context.Context) (versions, error) {
	v := versions{CPUs: runtime.NumCPU()}
	var changed string
	for _, q := range []struct {
		out  *string
		args []string
	}{
		{&v.Commit, []string{"git", "-c", "safe.directory=*", "rev-parse", "HEAD"}},
		{&changed, []string{"git", "-c", "safe.directory=*", "status", "--porcelain"}},
		{&v.Go, []string{"go", "env", "GOVERSION"}},
		{&v.WireGuard, []string{"go", "list", "-m", "-f", "{{.Version}}", wgModule}},
	} {
		b, err := exec.CommandContext(ctx, q.args[0], q.args[1:]...).Output()
		if err != nil && q.args[0] == "git" {
			b = []byte("unknown") // sources without their history
		} else if err != nil {
			return v, fmt.Errorf("%s: %w", strings.Join(q.args, " "), err)
		}
		*q.out = strings.TrimSpace(string(b))
	}
	v.Changed = changed != ""
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return v, fmt.Errorf("uname: %w", err)
	}
	v.Kernel = unix.ByteSliceToString(u.Release[:])
	return v, nil
}

// values are a figure's of one column, by round.
func (r *result) values(column, figure string) map[int]float64 {
	out := map[int]float64{}
	for _, s := range r.Samples {
		if v, ok := s.Figures[figure]; ok && s.Column == column {
			out[s.Round] = v
		}
	}
	return out
}

// summarise fills in medians and comparisons.
func (r *result) summarise() {
	r.Medians = map[string]map[string]estimate{}
	all := map[string]map[string][]float64{}
	for _, s := range r.Samples {
		for f, v := range s.Figures {
			if all[f] == nil {
				all[f], r.Medians[f] = map[string][]float64{}, map[string]estimate{}
			}
			all[f][s.Column] = append(all[f][s.Column], v)
			r.Medians[f][s.Column] = estimateOf(all[f][s.Column])
		}
	}
	r.Compared = compare(r)
}

// write writes the result file and returns its path.
func (r *result) write(dir string) (string, error) {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return "", fmt.Errorf("write results: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write results: %w", err)
	}
	path := filepath.Join(dir, "bench-"+r.Time.Format("20060102T150405Z")+".json")
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("write results: %w", err)
	}
	return path, nil
}
