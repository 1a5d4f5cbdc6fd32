package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"strings"

	"github.com/spf13/pflag"

	"causeway/hub"
	"causeway/internal/flagenv"
	"causeway/internal/service"
	"causeway/internal/strictyaml"
)

const defaultConfig = "/etc/causeway/hub.yaml"

// flags are the flags of 'run': hub.Settings, and where the file is.
type flags struct {
	file     string
	cfg      hub.Config           // defaults, then what flags and environment say
	prefixes map[string]*[]string // what they say of lists of CIDRs
}

func (f *flags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.file, "config", defaultConfig, "configuration file; the default one may be missing")
	f.cfg, f.prefixes = hub.Defaults(), map[string]*[]string{}
	for _, s := range hub.Settings {
		switch p := s.Field(&f.cfg).(type) {
		case *string:
			fs.StringVar(p, s.Name, *p, s.Doc)
		case *bool:
			fs.BoolVar(p, s.Name, *p, s.Doc)
		case *int:
			fs.IntVar(p, s.Name, *p, s.Doc)
		case *uint16:
			fs.Uint16Var(p, s.Name, *p, s.Doc)
		case *uint64:
			fs.Uint64Var(p, s.Name, *p, s.Doc)
		case *[]netip.Prefix:
			var texts []string
			for _, x := range *p {
				texts = append(texts, x.String())
			}
			f.prefixes[s.Name] = fs.StringSlice(s.Name, texts, s.Doc)
		}
	}
}

// envPrefix begins the environment variables that stand for flags.
const envPrefix = "CAUSEWAY_HUB"

// config merges the file, the environment and the flags; the later wins.
func (f *flags) config(set *pflag.FlagSet) (hub.Config, error) {
	if err := flagenv.Apply(set, envPrefix); err != nil {
		return hub.Config{}, err
	}
	file, err := readSettings(f.file, set.Changed("config"))
	if err != nil {
		return hub.Config{}, err
	}
	c := f.cfg
	for _, s := range hub.Settings {
		said, inFile := file[s.Name]
		inFile = inFile && !set.Changed(s.Name)
		switch p := s.Field(&c).(type) {
		case *[]netip.Prefix:
			texts := *f.prefixes[s.Name]
			if inFile {
				texts = said.([]string)
			}
			if *p, err = parsePrefixes(s.Name, texts); err != nil {
				return hub.Config{}, err
			}
		default:
			if inFile {
				reflect.ValueOf(p).Elem().Set(reflect.ValueOf(said))
			}
		}
	}
	if c.NATSCreds == "" && c.NATSURL != "" {
		c.NATSCreds = service.Credential(credNATS)
	}
	return c, hub.CheckPublicHost(c.PublicHost)
}

func parsePrefixes(name string, texts []string) (out []netip.Prefix, err error) {
	for _, s := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%s %.80q is no CIDR such as 198.18.0.0/15", name, s)
		}
		out = append(out, p)
	}
	return out, nil
}

// credNATS is the name of the credential that stands for nats_creds.
const credNATS = "nats.creds"

// fileShape is a pointer to a struct with a field for each key of the file.
func fileShape() reflect.Value {
	var fields []reflect.StructField
	for i, s := range hub.Settings {
		t := reflect.TypeOf(s.Field(new(hub.Config))).Elem()
		if t == reflect.TypeFor[[]netip.Prefix]() {
			t = reflect.TypeFor[[]string]()
		}
		tag := fmt.Sprintf(`yaml:"%s"`, strings.ReplaceAll(s.Name, "-", "_"))
		fields = append(fields, reflect.StructField{Name: fmt.Sprint("F", i), Type: t, Tag: reflect.StructTag(tag)})
	}
	return reflect.New(reflect.StructOf(fields))
}

// decodeSettings reads what a file says, by the names of settings. Unknown keys are errors; what is zero says nothing.
func decodeSettings(path string, b []byte) (map[string]any, error) {
	v := fileShape()
	if _, err := strictyaml.Decode(path, b, v.Interface(), strictyaml.Keys(v.Elem().Interface())); err != nil {
		return nil, err
	}
	said := map[string]any{}
	for i, s := range hub.Settings {
		if x := v.Elem().Field(i); !x.IsZero() && (x.Kind() != reflect.Slice || x.Len() > 0) {
			said[s.Name] = x.Interface()
		}
	}
	return said, nil
}

// readSettings reads the configuration file, which may be missing unless it was asked for.
func readSettings(path string, asked bool) (map[string]any, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return decodeSettings(path, b)
}
