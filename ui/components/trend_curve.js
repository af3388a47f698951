// An item's trend over six horizons, as bars of the rate each stands for.

export default {
  template: `
    <table class="ac-curve" data-testid="curve">
      <caption>Weight of interactions per day, as seen over each half-life: rising to the right means more now than before</caption>
      <tbody><tr><td v-for="row in rows" :key="row.name"><span>{{ short(row.rate) }}</span><i :style="{height: row.height + '%'}"></i></td></tr></tbody>
      <tfoot><tr><th v-for="row in rows" scope="col" :key="row.name">{{ row.name }}</th></tr></tfoot>
    </table>`,
  props: { rows: Array },
  methods: {
    short(rate) {
      return rate >= 100 ? Math.round(rate).toLocaleString("en") : rate >= 1 ? rate.toFixed(1) : rate.toPrecision(1);
    },
  },
};
