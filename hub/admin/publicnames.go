package admin

import (
	"causeway/hub/api"
	"causeway/hub/fleet"
	"causeway/hub/service"
)

// publicView shows what public names are answered.
type publicView struct {
	zone  string       // that this hub answers; empty: none
	words *fleet.Words // nil: not asked yet
}

// answers are what the public name of a service is answered now; none without a zone.
func (v *serviceView) answers(r *service.Result) (name string, out []api.ServiceAnswer) {
	if !r.Public.Said() || v.public.zone == "" {
		return "", nil
	}
	if v.public.words == nil {
		v.public.words = v.fleet.Words()
	}
	for _, v6 := range []bool{false, true} {
		a := r.Answered(v6, func(e service.Endpoint) service.Word { return v.public.words.On(r.Name, e) })
		for i, s := range a.Sites {
			out = append(out, api.ServiceAnswer{Site: s.Site, Addresses: s.Addrs, Percent: a.Percent(i)})
		}
	}
	return r.Public.Name + "." + v.public.zone, out
}

// publicFindings are what is wrong with a public name, by what is known live.
func (v *serviceView) publicFindings(r *service.Result) []service.Finding {
	if !r.Public.Said() {
		return nil
	}
	name, answers := v.answers(r)
	text := ""
	switch {
	case v.public.zone == "":
		text = "nobody answers its public name " + r.Public.Name + ": this hub has no zone (--listen-dns, --dns-zone, --dns-ns)"
	case len(answers) == 0:
		text = name + " is answered with no address: each site that has one is excluded, or may not serve"
	default:
		return nil
	}
	return []service.Finding{{Check: service.CheckPublic, Text: text}}
}
